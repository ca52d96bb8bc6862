"""Any column of the shards reaches a method, in one type, whatever the order; rows keep their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from tiny_shards import encoded, shape, shapes, write_shards

from granary.curation.errors import UserError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.collate import Part
from granary.training.data.columns import values_of
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan, Process, batches
from granary.training.data.passes import in_order
from granary.training.data.reads import Reads
from granary.training.data.table import Columns
from granary.training.recipe import TrainRecipe
from granary.training.run.setup import open_plan

WORLDS = ["sea", "moon", None, "9", "10"]


def table(folder: Path, count: int = 20, config: str = "data", **columns: Any) -> str:
    """Write pictures with a world, a depth, a vector, a truth value and structs, in row groups of four."""
    rows = range(count)
    stored = {
        "id": [f"{folder.name}{n:04d}" for n in rows],
        "image": [{"bytes": encoded(shape(n, 16)[0], "PNG"), "path": None} for n in rows],
        "label": [str(n % 2) for n in rows],
        "world": [WORLDS[n % 5] for n in rows],
        "depth": [None if n == 3 else n / 4 for n in rows],
        "vector": pa.array([[n, n + 1, n + 2] for n in rows], pa.list_(pa.int32(), 3)),
        "good": [n % 3 == 0 for n in rows],
        "negatives": [[{"kind": "swaps", "text": f"no {n}", "score": None}] for n in rows],
        **columns,
    }
    (folder / "dataset" / config).mkdir(parents=True)
    pq.write_table(pa.table(stored), folder / "dataset" / config / "train-00000-of-00001.parquet", row_group_size=4)
    return str(folder)


def plan_of(reads: Reads, *paths: str, **changes: Any) -> BatchPlan:
    settings = {"method": "supervised", "steps": 1, "batch": 10, "streams": 2, "window": 8, "out": "out", **changes}
    recipe = TrainRecipe.model_validate({"data": [{"path": path} for path in paths], **settings})
    return open_plan(recipe, reads, 1)._replace(crops={"image": Crop(1, 8)})


def by_row(plan: BatchPlan, steps: int, workers: int = 0, processes: int = 1) -> dict[int, Part]:
    """Return what a batch says of every row, by its number."""
    seen: dict[int, Part] = {}
    for rank in range(processes):
        for batch in batches(plan, range(steps), Process(rank, processes), workers):
            for place, row in enumerate(batch["row"].tolist()):
                cells = {name: batch[name][place] for name in batch if name not in ("dead", "image", "image_draws")}
                assert seen.setdefault(row, cells).keys() == cells.keys()
                assert repr(seen[row]) == repr(cells)
    return seen


# -- columns -------------------------------------------------------------------------------------------------------


def test_columns_come_as_tensors_of_one_type_or_as_python_objects(tmp_path: Path) -> None:
    reads = Reads(("image", "depth", "vector", "good", "negatives"), ("world",))
    plan = plan_of(reads, table(tmp_path / "a"))
    batch = next(batches(plan, range(1), workers=0))
    kinds = {name: batch[name].dtype for name in ("depth", "vector", "good", "world", "row")}
    whole = torch.int64
    assert kinds == {"depth": torch.float32, "vector": whole, "good": torch.bool, "world": whole, "row": whole}
    assert batch["vector"].shape == (10, 3)
    rows = by_row(plan, 2)
    assert sorted(rows) == list(range(20))
    names = list(plan.categories["world"])
    assert names == ["9", "10", "moon", "sea"]  # numbers by value, before words
    for number, cells in rows.items():
        assert cells["depth"].item() == number / 4 or (number == 3 and cells["depth"].isnan())
        assert cells["vector"].tolist() == [number, number + 1, number + 2]
        assert cells["good"].item() == (number % 3 == 0)
        assert cells["negatives"] == [{"kind": "swaps", "text": f"no {number}", "score": None}]
        world = cells["world"].item()
        assert (names[world] if world >= 0 else None) == WORLDS[number % 5]


def test_categories_have_shares_of_the_mixture_and_label_is_one_of_them(tmp_path: Path) -> None:
    paths = [table(tmp_path / "a"), table(tmp_path / "b", count=10, world=["sea"] * 10)]
    plan = plan_of(Reads(("image", "label"), ("world",)), *paths)
    assert plan.categories["world"] == pytest.approx({"9": 0.1, "10": 0.1, "moon": 0.1, "sea": 0.6})
    assert plan.categories["label"] == plan.classes == pytest.approx({"0": 0.5, "1": 0.5})


def test_without_the_picture_nothing_is_decoded(tmp_path: Path) -> None:
    broken = [{"bytes": b"no picture", "path": None}] * 20
    plan = plan_of(Reads(("depth",)), table(tmp_path / "a", image=broken))._replace(crops={})
    batch = next(batches(plan, range(1), workers=2))
    assert set(batch) == {"id", "depth", "row", "dead"}
    assert batch["dead"] == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 3], pa.uint8()), np.array([1, -1, 3])),
        (pa.array([1.5, None], pa.float64()), np.array([1.5, np.nan], np.float32)),
        (pa.array([True, None]), np.array([True, False])),
        (pa.array([[1.0, None], None], pa.list_(pa.float32(), 2)), np.array([[1, np.nan], [np.nan] * 2], np.float32)),
        (pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2))[1:], np.array([[-1, -1], [3, 4]])),
        (pa.array([], pa.list_(pa.int8(), 2)), np.zeros((0, 2), np.int64)),
    ],
)
def test_no_value_has_a_value_of_its_own_in_a_tensor(values: pa.Array, expected: NDArray[Any]) -> None:
    found = values_of(values)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("values", [["a", None], [[1], [2, 3]], [{"a": 1}, None], [b"x", b"y"]])
def test_anything_else_is_python_objects(values: list[Any]) -> None:
    assert values_of(pa.array(values)) == values


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"streams": 1}, {"streams": 5, "window": 1}, {"seed": 9}, {"batch": 4}])
def test_a_row_keeps_its_number_whatever_the_order(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Over epochs, workers and processes; dataset after dataset, in the order of the shards."""
    paths = [table(tmp_path / "a"), table(tmp_path / "b", count=12)]
    plan = plan_of(Reads(), *paths, **changes)
    expected = {n: f"a{n:04d}" for n in range(20)} | {20 + n: f"b{n:04d}" for n in range(12)}
    for workers, processes in ((0, 1), (2, 1), (0, plan.streams)):
        rows = by_row(plan, 20, workers, processes)
        assert {number: cells["id"] for number, cells in rows.items()} == expected


def test_rows_of_a_split_are_numbered_among_themselves(tmp_path: Path) -> None:
    rows = [{**row, "split": "val" if n % 3 else "train"} for n, row in enumerate(shapes(30))]
    path = str(write_shards(tmp_path, rows, group=7, extra={"split": pa_string()}))
    plan = plan_of(Reads(), path, split="val")
    found = {number: cells["id"] for number, cells in by_row(plan, 4).items()}
    assert found == dict(enumerate(row["id"] for row in rows if row["split"] == "val"))
    parts = in_order(plan.datasets[0], Crop(1, 8, centre=True), batch=3)
    assert [number for part in parts for number in part["row"].tolist()] == list(range(20))


def pa_string() -> Any:
    from datasets import Value

    return Value("string")


# -- pictures made another way, other places, other names ------------------------------------------------------------


def squares(row: Part, generator: np.random.Generator, crops: Any, limits: DecodeLimits) -> Part:
    """Views without a picture: all pixels have the value of the column depth."""
    side = crops["image"].side
    return {"image": np.full((1, side, side, 3), row["depth"], np.uint8), "drawn": generator.random(2)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_method_may_make_its_views_itself(tmp_path: Path, workers: int) -> None:
    depth = list(range(20))
    plan = plan_of(Reads(("image", "depth"), views=squares), table(tmp_path / "a", depth=depth))
    batch = next(batches(plan, range(1), workers=workers))
    assert torch.equal(batch["image"][:, 0, 0, 0, 0].long(), batch["row"])
    assert batch["drawn"].shape == (10, 2)


def test_shards_may_lie_in_the_folder_of_another_config(tmp_path: Path) -> None:
    table(tmp_path / "run", count=20)
    path = table(tmp_path / "run", count=10, config="pairs")
    assert plan_of(Reads(), path).datasets[0].count == 20
    assert plan_of(Reads(config="pairs"), path).datasets[0].count == 10


def test_any_column_may_have_another_name(tmp_path: Path) -> None:
    path = table(tmp_path / "a")
    settings = {"method": "supervised", "steps": 1, "batch": 10, "out": "out"}
    recipe = TrainRecipe.model_validate({"data": [{"path": path, "names": {"environment": "world"}}], **settings})
    plan = open_plan(recipe, Reads(categories=("environment",)), 1)
    assert set(plan.categories["environment"]) == {"9", "10", "moon", "sea"}
    recipe = TrainRecipe.model_validate({"data": [{"path": path, "names": {"environment": "place"}}], **settings})
    with pytest.raises(UserError, match=r"data\.names\.environment: .* has no column 'place'; it has id, image"):
        open_plan(recipe, Reads(categories=("environment",)), 1)
    assert hash(Columns(others=(("a", "b"),)))


@pytest.mark.parametrize(
    ("reads", "sentence"),
    [
        (Reads(("image", "place")), "has no column 'place', which supervised needs; .* --data.names.place"),
        (Reads(categories=("negatives",)), "the column negatives of .*; a label is a number, a text or a truth value"),
        (Reads(("depth",)), "the column depth is float32 in .* and objects in .*; it must be of one type"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, reads: Reads, sentence: str) -> None:
    paths = [table(tmp_path / "a"), table(tmp_path / "b", depth=["deep"] * 20)]
    with pytest.raises(UserError, match=sentence):
        plan_of(reads, *paths)
