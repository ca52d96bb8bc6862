"""Facts about batches: complete coverage, the same whatever the workers, the same after a restart, honest failures."""

from __future__ import annotations

import io
from collections import Counter
from multiprocessing import heap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from datasets import Value
from PIL import Image
from tiny_shards import encoded, sample, shape, shapes, write_shards

from granary.curation.errors import UserError
from granary.curation.images.limits import DecodeLimits
from granary.training.data import crops, shards
from granary.training.data import loader as data
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan, Process, batches, check_plan
from granary.training.data.passes import in_order
from granary.training.data.splits import held_out

LIMITS = DecodeLimits()
VIEWS = {"large": Crop(2, 16, (0.4, 1.0)), "small": Crop(3, 8, (0.1, 0.4))}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 shapes in 2 shards of 3 row groups."""
    return write_shards(tmp_path_factory.mktemp("run"), shapes(48), group=8)


def plan_of(*paths: Path, **changes: Any) -> BatchPlan:
    sets = [shards.open_dataset(str(path)) for path in paths]
    settings: dict[str, Any] = {"crops": VIEWS, "batch": 12, "streams": 4, "window": 24, "seed": 5}
    return BatchPlan(sets, [1.0] * len(sets), **{**settings, **changes})


def same(left: Part, right: Part) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[k], right[k]) if isinstance(left[k], torch.Tensor) else left[k] == right[k] for k in left
    )


def test_a_batch_has_its_shapes(run: Path) -> None:
    plan = plan_of(run, columns=("image", "label", "captions"), categories={"label": ("circle", "cross")})
    batch = next(batches(plan, range(1), workers=0))
    assert {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "large": (12, 2, 16, 16, 3),
        "large_draws": (12, 2, 16),
        "small": (12, 3, 8, 8, 3),
        "small_draws": (12, 3, 16),
        "label": (12,),
        "row": (12,),
    }
    assert batch["large"].dtype == torch.uint8
    crosses = [texts for texts, number in zip(batch["captions"], batch["label"], strict=True) if number == 1]
    assert {text for texts in crosses for text in texts} == {"a cross"}
    assert set(batch["label"].tolist()) == {-1, 0, 1}  # squares and triangles are no class here


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_cover_an_epoch_exactly_once(run: Path, processes: int) -> None:
    plan = plan_of(run)
    seen = Counter(
        name
        for rank in range(processes)
        for batch in batches(plan, range(4), Process(rank, processes), workers=0)
        for name in batch["id"]
    )
    assert len(seen) == 48
    assert set(seen.values()) == {1}


def test_processes_together_see_what_one_sees(run: Path) -> None:
    plan = plan_of(run)
    whole = [batch["id"] for batch in batches(plan, range(3), workers=0)]
    halves = [[batch["id"] for batch in batches(plan, range(3), Process(rank, 2), workers=0)] for rank in range(2)]
    assert whole == [left + right for left, right in zip(*halves, strict=True)]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(run: Path, workers: int) -> None:
    plan = plan_of(run)
    alone, shared = (list(batches(plan, range(6), workers=n)) for n in (0, workers))
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_workers_of_remote_shards_change_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not forked: everything they need is sent to them."""
    monkeypatch.setattr(data.storage, "is_local", lambda _: False)
    plan = plan_of(run)
    assert data._context(plan) == "forkserver"
    alone, shared = (list(batches(plan, range(6), workers=n)) for n in (0, 2))
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("streams", [1, 4])
def test_batches_outlive_the_memory_they_came_in(run: Path, monkeypatch: pytest.MonkeyPatch, streams: int) -> None:
    """Every slot of the ring is written several times, while whoever asked keeps all batches."""
    monkeypatch.setattr(data, "RUN_BYTES", 1)  # one step at a time
    plan = plan_of(run, streams=streams)
    alone, shared = (list(batches(plan, range(30), workers=n)) for n in (0, 2))
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_a_small_dev_shm_changes_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers often limit it to 64 MB; memory beyond it would kill a worker when it is written."""
    full, places = SimpleNamespace(f_bavail=0, f_frsize=4096), []
    monkeypatch.setattr(heap.BufferWrapper, "_heap", heap.Heap())  # without room left from other tests
    monkeypatch.setattr(heap.os, "statvfs", lambda _: full)
    monkeypatch.setattr(heap.util, "get_temp_dir", lambda: places.append(tmp_path) or str(tmp_path))
    plan = plan_of(run)
    alone, shared = (list(batches(plan, range(6), workers=n)) for n in (0, 2))
    assert places
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_going_on_in_the_middle_of_an_epoch_gives_the_rest(run: Path) -> None:
    plan = plan_of(run)
    whole = list(batches(plan, range(9), workers=0))
    assert all(same(a, b) for a, b in zip(whole[2:], batches(plan, range(2, 9), workers=2), strict=True))


def test_how_many_steps_are_made_at_a_time_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of 1, of 3 with an end cut short, and of all 7 steps; what cannot be decoded is told at its own step."""
    rows = shapes(48)
    rows[20] = sample(b"no image", (32, 32))
    plan, found = plan_of(write_shards(tmp_path, rows, group=8)), []
    for pictures in (1, 9, 64):
        monkeypatch.setattr(data, "RUN", pictures)
        found.append(list(batches(plan, range(2, 9), workers=0)))
    dead = [len(batch["dead"]) for batch in found[0]]
    assert 0 < sum(dead) < len(dead)
    assert all(same(a, b) and same(a, c) for a, b, c in zip(*found, strict=True))


def test_a_sample_is_cut_the_same_whoever_is_with_it(run: Path) -> None:
    """Other batch sizes and streams bring other neighbours; views and draws of a sample in an epoch stay."""
    found: dict[str, Part] = {}
    for changes in ({}, {"batch": 6, "streams": 2}, {"batch": 16, "streams": 8, "window": 8}):
        plan = plan_of(run, **changes)
        for batch in batches(plan, range(48 // plan.batch), workers=0):
            for row, name in enumerate(batch["id"]):
                views = {key: batch[key][row] for key in ("large", "small", "large_draws", "small_draws")}
                assert all(torch.equal(views[key], found.setdefault(name, views)[key]) for key in views)
    assert len(found) == 48


def test_epochs_cut_a_sample_differently(run: Path) -> None:
    plan = plan_of(run)
    first, second = ({}, {})
    for step, batch in enumerate(batches(plan, range(8), workers=0)):
        (first if step < 4 else second).update(zip(batch["id"], batch["large_draws"], strict=True))
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_a_mixture_takes_from_all(run: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path, shapes(16, first=1000), shards=1)
    ids = {name: {row["id"] for row in rows} for name, rows in (("a", shapes(48)), ("b", shapes(16, first=1000)))}
    plan = plan_of(run, other)._replace(weights=[3.0, 1.0])
    seen = [name for batch in batches(plan, range(64), workers=0) for name in batch["id"]]
    assert sum(name in ids["a"] for name in seen) / len(seen) == pytest.approx(0.75, abs=0.06)
    assert set(seen) == ids["a"] | ids["b"]


# -- decoding --------------------------------------------------------------------------------------------------------


def test_large_jpegs_are_decoded_small_and_look_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = shape(0, 800)[0]
    jpeg, sides = encoded(image, quality=95), []
    original = crops.decode_pixels

    def recording(data: bytes, limits: DecodeLimits, side: int | None = None, fast: bool = False) -> Any:
        picture = original(data, limits, side, fast)
        sides.append(picture.pixels.shape)
        return picture

    monkeypatch.setattr(crops, "decode_pixels", recording)
    views = {"v": Crop(2, 64, (0.3, 1.0))}
    small = crops.cut_views(jpeg, (800, 800), views, np.random.default_rng(0), LIMITS)["v"]
    full = crops.cut_views(jpeg, None, views, np.random.default_rng(0), LIMITS)["v"]
    assert sides[0][0] <= 200 < sides[1][0] == 800
    assert np.abs(small.astype(int) - full.astype(int)).mean() < 2


def test_a_central_crop_is_the_middle_square() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255
    png, views = encoded(Image.fromarray(pixels), "PNG"), {"v": Crop(1, 40, centre=True)}
    view = crops.cut_views(png, (80, 40), views, np.random.default_rng(0), LIMITS)
    assert view["v"].min() == 255


def test_boxes_say_where_in_the_picture_a_view_is_from(run: Path) -> None:
    """Views cut again by hand from the boxes are the same; numbers for the device follow as many as were asked for."""
    kinds = {"v": Crop(2, 16, (0.2, 0.9), draws=5, boxes=True), "w": Crop(1, 8)}
    batch = next(batches(plan_of(run, crops=kinds), range(1), workers=2))
    plain = next(batches(plan_of(run, crops={"v": Crop(2, 16, (0.2, 0.9), draws=5), "w": Crop(1, 8)}), range(1)))
    assert batch["v_boxes"].shape == (12, 2, 4)
    assert batch["v_draws"].shape == (12, 2, 5)
    assert set(batch) - set(plain) == {"v_boxes"}
    assert all(torch.equal(batch[name], plain[name]) for name in ("v", "w", "w_draws"))
    pictures = {row["id"]: Image.open(io.BytesIO(row["image"]["bytes"])) for row in shapes(48)}
    for name, boxes, views in zip(batch["id"], batch["v_boxes"], batch["v"], strict=True):
        for box, view in zip((boxes * 32).round().int().tolist(), views, strict=True):
            assert np.array_equal(view, crops.resized(np.asarray(pictures[name].crop(box)), 16))


def test_boxes_have_the_areas_and_shapes_that_were_asked_for() -> None:
    crop, generator = Crop(1, 32, (0.3, 0.6)), np.random.default_rng(0)
    boxes = np.array([crops.random_box(300, 200, crop, generator) for _ in range(500)])
    wide, tall = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 300
    assert boxes[:, 3].max() <= 200
    share = wide * tall / 60_000
    assert 0.29 < share.min() < 0.33
    assert 0.57 < share.max() < 0.61
    assert share.mean() == pytest.approx(0.45, abs=0.02)
    assert (wide / tall).min() > 0.73
    assert (wide / tall).max() < 1.36


def test_a_view_is_what_pillow_cuts() -> None:
    image, generator = shape(1, 100)[0], np.random.default_rng(3)
    view = crops.cut_views(encoded(image, "PNG"), (100, 100), {"v": Crop(1, 32)}, generator, LIMITS)["v"][0]
    box = crops.random_box(100, 100, Crop(1, 32), np.random.default_rng(3))
    expected = image.crop(tuple(int(edge) for edge in box)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(view.astype(int) - np.asarray(expected).astype(int)).mean() < 0.1


def test_what_cannot_be_decoded_is_told_and_replaced(tmp_path: Path) -> None:
    rows = shapes(8)
    rows[3] = sample(b"no image", (32, 32), label="circle")
    rows[5] = sample(b"", (32, 32), label="circle")
    plan = plan_of(write_shards(tmp_path, rows, shards=1), batch=8, streams=1)
    batch = next(batches(plan, range(1), workers=0))
    assert sorted((uri, kind) for uri, kind, _ in batch["dead"]) == sorted(
        [(rows[3]["source"]["uri"], "UnidentifiedImageError"), (rows[5]["source"]["uri"], "EmptyFile")]
    )
    assert set(batch["id"]) == {row["id"] for row in rows} - {rows[3]["id"], rows[5]["id"]}
    assert len(batch["id"]) == 8
    broken = write_shards(tmp_path / "all", [sample(b"%d" % i, (32, 32)) for i in range(8)], shards=1)
    with pytest.raises(UserError, match="100 samples in a row cannot be decoded"):
        next(batches(plan_of(broken, batch=8, streams=1), range(1), workers=0))


# -- datasets --------------------------------------------------------------------------------------------------------


def test_splits_come_from_the_column_or_from_a_hash(run: Path, tmp_path: Path) -> None:
    rows = [{**row, "split": "val" if i % 4 == 0 else "train"} for i, row in enumerate(shapes(20))]
    stated = write_shards(tmp_path, rows, shards=2, group=6, extra={"split": Value("string")})
    val = shards.open_dataset(str(stated), split="val")
    ids = [name for part in in_order(val, Crop(1, 8, centre=True)) for name in part["id"]]
    assert ids == [row["id"] for row in rows if row["split"] == "val"]
    with pytest.raises(UserError, match="no rows in split 'test'"):
        shards.open_dataset(str(stated), split="test")
    train, test = (shards.open_dataset(str(run), split=name, holdout=0.3) for name in ("train", "test"))
    assert train.count + test.count == 48
    assert 5 < test.count < 25
    with pytest.raises(UserError, match=r"no rows in split 'val'; it has test, train"):
        shards.open_dataset(str(run), split="val")


def test_equal_ids_are_on_one_side_and_the_share_is_kept() -> None:
    ids = np.array([f"{i:032x}" for i in range(20_000)])
    out = held_out(ids, 0.1)
    assert out.mean() == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(out[::-1], held_out(ids[::-1], 0.1))
    assert held_out(ids, 0.2)[out].all()  # a larger share holds the smaller


@pytest.mark.parametrize("place", ["", "dataset", "dataset/data", "dataset/data/train-00000-of-00002.parquet"])
def test_a_dataset_is_found_by_any_of_its_names(run: Path, place: str) -> None:
    found = shards.open_dataset(str(run / place))
    assert found.count == (24 if place.endswith("parquet") else 48)


def test_remote_shards_are_read(run: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(run / "dataset"), "/training/dataset", recursive=True)
    plan = plan_of(run)._replace(datasets=[shards.open_dataset("memory://training")])
    assert same(next(batches(plan, range(1), workers=0)), next(batches(plan_of(run), range(1), workers=0)))
    memory.rm("/training", recursive=True)


def test_mistakes_are_sentences(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'depth', which clip needs"):
        shards.open_dataset(str(run), ("image", "depth"), why="clip")
    with pytest.raises(UserError, match="has no Parquet shards"):
        shards.open_dataset(str(tmp_path))
    empty = write_shards(tmp_path / "empty", [])
    with pytest.raises(UserError, match="has no rows"):
        shards.open_dataset(str(empty))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        shards.open_dataset(str(tmp_path / "bad.parquet"))
    with pytest.raises(UserError, match=r"batch: 64 is not right: the data have 48 samples"):
        check_plan(plan_of(run, batch=64))
    with pytest.raises(UserError, match="streams: 5 is not right"):
        check_plan(plan_of(run, streams=5))
    with pytest.raises(UserError, match="multiple of the 3 processes"):
        check_plan(plan_of(run), 3)


def test_class_names_are_sorted_and_nothing_is_no_class(tmp_path: Path) -> None:
    rows = shapes(8)
    for row, label in zip(rows, ["10", "9", "-1", "", None, "2", "9", "10"], strict=True):
        row["label"] = label
    found = shards.class_names([shards.open_dataset(str(write_shards(tmp_path, rows)))])
    assert found == ["2", "9", "10"]


def test_in_order_gives_every_row_once(run: Path) -> None:
    opened = shards.open_dataset(str(run))
    parts = list(in_order(opened, Crop(1, 8, centre=True), ("image", "label"), ("circle",), batch=5, limit=21))
    assert [name for part in parts for name in part["id"]] == [row["id"] for row in shapes(48)][:21]
    assert max(len(part["id"]) for part in parts) == 5
    image = Image.open(io.BytesIO(shapes(48)[7]["image"]["bytes"]))
    image = image.resize((8, 8), Image.Resampling.BICUBIC, reducing_gap=3.0)
    assert np.array_equal(torch.cat([part["image"] for part in parts])[7, 0].numpy(), np.asarray(image))
