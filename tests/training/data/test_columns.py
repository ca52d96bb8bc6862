"""Tables that granary did not write: what can be read of them is read, the rest is refused before any work."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, Value
from tiny_shards import encoded, shape, shapes, write_shards

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan, batches
from granary.training.data.passes import in_order
from granary.training.data.table import Columns
from granary.training.recipe import TrainRecipe

PICTURES = [encoded(shape(number)[0], "PNG") for number in range(12)]
CROP = Crop(1, 8, centre=True)


def table(folder: Path, name: str = "data.parquet", **columns: Any) -> str:
    """Write twelve pictures and further columns in two row groups; returns the folder."""
    folder.mkdir(exist_ok=True)
    stored = {"image": [{"bytes": data, "path": "x.png"} for data in PICTURES], **columns}
    pq.write_table(pa.table({key: value for key, value in stored.items() if value is not None}), folder / name, 8)
    return str(folder)


def read(path: str, needs: tuple[str, ...] = ("image",), **options: Any) -> dict[str, list[Any]]:
    """Return ids, labels and captions of a dataset in order."""
    dataset = shards.open_dataset(path, needs, **options)
    classes = shards.class_names([dataset]) if "label" in needs else []
    parts = list(in_order(dataset, CROP, needs, classes, batch=5))
    assert sum(len(part["image"]) for part in parts) == dataset.count
    assert not any(part["dead"] for part in parts)
    kept = {"id": [name for part in parts for name in part["id"]]}
    if "label" in needs:
        numbers = [number for part in parts for number in part["label"].tolist()]
        kept["label"] = [classes[number] if number >= 0 else None for number in numbers]
    if "captions" in needs:
        kept["captions"] = [texts for part in parts for texts in part["captions"]]
    return kept


# -- columns with our names and other types ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"source": ["flickr"] * 12},
        {"source": [7] * 12},
        {"id": list(range(12))},
        {"id": None},
        {"id": [{"shard": 1}] * 12},
        {"row_id": list(range(12)), "id": ["a"] * 12},
        {"width": pa.nulls(12), "height": pa.nulls(12)},
        {"width": ["wide"] * 12, "height": [1.5] * 12},
        {"width": [-3] * 12, "height": [0] * 12},
        {"split": list(range(12)), "captions": ["one text"] * 12},
        {"label": [["a", "b"]] * 12},
    ],
)
def test_other_types_of_columns_that_are_not_needed_are_no_hindrance(columns: dict[str, Any], tmp_path: Path) -> None:
    path = table(tmp_path / "data", **columns)
    assert len(set(read(path)["id"])) == (1 if columns.get("id") == ["a"] * 12 and "row_id" not in columns else 12)
    plan = BatchPlan([shards.open_dataset(path)], [1.0], {"image": Crop(1, 8)}, batch=4, streams=2)
    assert len({name for batch in batches(plan, range(3), workers=1) for name in batch["id"]}) == 12


def test_rows_without_ids_are_named_by_file_and_row_and_split_by_that(tmp_path: Path) -> None:
    path = table(tmp_path / "data", "a.parquet")
    table(tmp_path / "data", "b.parquet", id=["x", None] + [f"n{n}" for n in range(10)])
    expected = [f"a.parquet#{row}" for row in range(12)] + ["x", "b.parquet#1"] + [f"n{n}" for n in range(10)]
    assert read(path)["id"] == expected
    train, test = (read(path, split=split, holdout=0.5)["id"] for split in ("train", "test"))
    assert sorted(train + test) == sorted(expected)
    assert train
    assert test


def test_a_split_may_be_a_number(tmp_path: Path) -> None:
    path = table(tmp_path / "data", split=[row % 3 for row in range(12)], id=[f"{row}" for row in range(12)])
    assert read(path, split="2")["id"] == ["2", "5", "8", "11"]


@pytest.mark.parametrize(
    ("columns", "needs", "sentence"),
    [
        ({"image": ["x.png"] * 12}, "image", "the column image of .* is string; it must hold the bytes of pictures"),
        ({"image": [{"path": "x.png"}] * 12}, "image", "the column image of .*; it must hold the bytes of pictures"),
        ({"label": [[["a"]]] * 12}, "label", "the column label of .*; a label is a number, a text or a truth value"),
        ({"label": [{"a": 1}] * 12}, "label", "the column label of .*; a label is a number, a text or a truth value"),
        ({"captions": [1.5] * 12}, "captions", "the column captions of .* is double; it must be a list of texts"),
        ({"captions": [[1, 2]] * 12}, "captions", "the column captions of .*; it must be a list of texts, or a text"),
        ({}, "label", "has no column 'label', which this needs; its columns are image; name .* with --data.label"),
        ({"image": None, "a": [1] * 12}, "image", "has no column 'image', .* columns are a; name .* --data.image"),
    ],
)
def test_what_cannot_be_read_is_refused_before_work(
    columns: dict[str, Any], needs: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        shards.open_dataset(table(tmp_path / "data", **columns), ("image", needs))


def test_every_shard_is_looked_at(tmp_path: Path) -> None:
    table(tmp_path / "data", "a.parquet", label=[1] * 12)
    path = table(tmp_path / "data", "b.parquet", tag=[1] * 12)
    with pytest.raises(UserError, match=r"b.parquet has no column 'label'"):
        shards.open_dataset(path, ("image", "label"))


# -- names -------------------------------------------------------------------------------------------------------------


def test_columns_of_other_names_are_read(tmp_path: Path) -> None:
    fine = ["x" if row % 2 else "y" for row in range(12)]
    captions = [f"picture {row}" for row in range(12)]
    columns = {"img": PICTURES, "fine_label": fine, "alt": captions, "key": list(range(12)), "label": [0] * 12}
    path = table(tmp_path / "data", image=None, **columns)
    named = Columns(image="img", label="fine_label", captions="alt", id="key")
    found = read(path, ("image", "label", "captions"), columns=named)
    assert found["label"] == fine
    assert found["captions"] == [[text] for text in captions]
    assert found["id"] == [str(row) for row in range(12)]


@pytest.mark.parametrize("option", ["image", "label", "captions", "id"])
def test_a_name_that_is_no_column_is_refused_needed_or_not(option: str, tmp_path: Path) -> None:
    path = table(tmp_path / "data", label=[1] * 12)
    with pytest.raises(UserError, match=rf"data\.{option}: .* has no column 'fine'; it has image, label"):
        shards.open_dataset(path, columns=Columns(**{option: "fine"}))


def test_a_single_column_of_pictures_needs_no_name(tmp_path: Path) -> None:
    pictures = [{"bytes": data, "path": None} for data in PICTURES]
    path = table(tmp_path / "data", image=None, img=pictures, text=["a"] * 12)
    assert read(path, ("image", "captions"))["captions"] == [["a"]] * 12
    two = table(tmp_path / "two", image=None, left=pictures, right=pictures)
    with pytest.raises(UserError, match=r"its columns are left, right; name the right one with --data\.image"):
        shards.open_dataset(two)


@pytest.mark.parametrize("words", ["RUN * 3 + RUN2", ["RUN * 3", "RUN2"]])
def test_the_names_of_columns_are_options_of_a_dataset(words: object) -> None:
    given = {"path": words, "image": "img"} if isinstance(words, str) else words
    recipe = TrainRecipe.model_validate({"method": "supervised", "data": given, "out": "o", "steps": 1})
    assert [(entry.path, entry.weight) for entry in recipe.data] == [("RUN", 3.0), ("RUN2", 1.0)]
    assert [entry.columns.image for entry in recipe.data] == (["img"] * 2 if isinstance(words, str) else [None] * 2)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([3.0, None, 7.0, float("nan")], ["3", None, "7", None]),
        ([3, None, 7, -1], ["3", None, "7", None]),
        ([True, False, None, True], ["True", "False", None, "True"]),
        ([b"cat", b"dog", None, b"cat"], ["cat", "dog", None, "cat"]),
        ([2.5, 3.0, 2.5, -1.0], ["2.5", "3", "2.5", None]),
        ([["a"], None, ["b"], ["a"]], ["a", None, "b", "a"]),
        (pa.array(["a", None, "b", "a"]).dictionary_encode(), ["a", None, "b", "a"]),
        ([datetime.date(2020, 1, 2), None] * 2, ["2020-01-02", None] * 2),
    ],
)
def test_labels_of_any_plain_type_are_texts(values: Any, labels: list[str | None], tmp_path: Path) -> None:
    stored = values.take(pa.array(np.arange(12) % 4)) if isinstance(values, pa.Array) else list(values) * 3
    path = table(tmp_path / "data", label=stored)
    assert read(path, ("image", "label"))["label"] == labels * 3


def test_numbers_of_classes_are_their_names(tmp_path: Path) -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "id": Value("string")})
    rows = [{"image": {"bytes": data, "path": None}, "id": f"{n}"} for n, data in enumerate(PICTURES)]
    labelled = [{**row, "label": number % 3 - 1} for number, row in enumerate(rows)]
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(labelled, features.arrow_schema), folder / "a.parquet")
    assert read(str(folder), ("image", "label"))["label"] == [None, "cat", "dog"] * 4


@pytest.mark.parametrize(
    "captions",
    [
        ["a cat"] * 12,
        [["a cat"]] * 12,
        pa.array([["a cat"]] * 12, pa.large_list(pa.large_string())),
        [[{"raw": "a cat", "sentid": 3}]] * 12,
        [[{"caption": "a cat"}]] * 12,
        [b" a cat "] * 12,
        [{"raw": ["a cat", " "]}] * 12,
    ],
)
def test_captions_of_any_shape_are_lists_of_texts(captions: Any, tmp_path: Path) -> None:
    assert read(table(tmp_path / "data", captions=captions), ("image", "captions"))["captions"] == [["a cat"]] * 12


# -- splits in the names of shards -------------------------------------------------------------------------------------


def test_shards_that_are_named_by_their_split_need_no_column(tmp_path: Path) -> None:
    for split, rows in (("train", shapes(8)), ("test", shapes(4, first=8)), ("validation", shapes(2, first=12))):
        written = write_shards(tmp_path / split, rows, shards=1) / "dataset" / "data" / "train-00000-of-00001.parquet"
        (tmp_path / "run" / "data").mkdir(parents=True, exist_ok=True)
        written.rename(tmp_path / "run" / "data" / f"{split}-00000-of-00001.parquet")
    run = str(tmp_path / "run")
    counts = {split: shards.open_dataset(run, split=split).count for split in ("train", "test", "validation", None)}
    assert counts == {"train": 8, "test": 4, "validation": 2, None: 14}
    assert shards.open_dataset(run).states_split
    assert shards.open_dataset(run, split="val").count == counts["validation"]
    with pytest.raises(UserError, match=r"no rows in split 'held'; it has test, train, validation"):
        shards.open_dataset(run, split="held")
    (tmp_path / "run/data/validation-00000-of-00001.parquet").rename(tmp_path / "run/data/dev-00000-of-00001.parquet")
    assert [shards.open_dataset(run, split=split).count for split in ("val", "dev", "validation")] == [2, 2, 2]


def test_folders_that_are_no_splits_name_none(tmp_path: Path) -> None:
    for part in ("a", "b"):
        table(tmp_path / part, "0000.parquet")
    split = {name: shards.open_dataset(str(tmp_path), split=name, holdout=0.5).count for name in ("train", "test")}
    assert split["train"] + split["test"] == shards.open_dataset(str(tmp_path)).count  # by hash
    assert min(split.values())


def test_a_folder_for_each_split_names_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table(tmp_path / split, "0000.parquet")
    table(tmp_path / "train", "0001.parquet")
    counts = {split: shards.open_dataset(str(tmp_path), split=split).count for split in ("train", "test", None)}
    assert counts == {"train": 24, "test": 12, None: 36}
    assert 0 < shards.open_dataset(str(tmp_path / "train"), split="test", holdout=0.5).count < 24  # by hash


def test_a_column_split_goes_before_the_names_of_shards(tmp_path: Path) -> None:
    stated = {"extra": {"split": Value("string")}, "shards": 1}
    for split in ("train", "test"):
        rows = [{**row, "split": "held-out" if split == "test" else "train"} for row in shapes(4)]
        written = write_shards(tmp_path / split, rows, **stated) / "dataset" / "data" / "train-00000-of-00001.parquet"
        (tmp_path / "data").mkdir(exist_ok=True)
        written.rename(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert shards.open_dataset(str(tmp_path), split="held-out").count == 4
