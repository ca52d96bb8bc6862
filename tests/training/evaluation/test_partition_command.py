"""`granary partition`: parts of runs with planted copies, by content, whatever the order of the rows."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import List, Value, load_dataset
from PIL import Image, ImageOps
from pydantic import ValidationError
from sklearn.datasets import load_sample_images
from tiny_shards import encoded, sample, write_shards
from tiny_trainings import tiny_training

from granary.curation.errors import UserError
from granary.pipelines.command import main
from granary.pipelines.command import run as command
from granary.training.data.shards import open_dataset
from granary.training.evaluation.partition import write_partition
from granary.training.evaluation.partition_recipe import PartitionRecipe

CLASSES = ("cat", "dog")
BOX = {"objects": List({"name": Value("string"), "box": List(Value("int32"))}), "split": Value("string")}


def tiles(count: int) -> list[Image.Image]:
    """Return distinct pictures of 48 px, none of plain sky, whose copies would be hard to tell."""
    photos, rng, found = (
        [Image.fromarray(pixels) for pixels in load_sample_images().images],
        np.random.default_rng(0),
        [],
    )
    for number, x in enumerate(rng.permutation(590).tolist()):
        y = int(rng.integers(0, 370))
        tile = photos[number % 2].crop((x, y, x + 48, y + 48))
        if np.asarray(tile.convert("L")).std() > 25:
            found.append(tile)
    return found[:count]


def rows_of(count: int = 60) -> list[dict[str, Any]]:
    """Return pictures of two classes, four of five with a box; every fifth has an edited or mirrored copy."""
    rows = []
    for number, image in enumerate(tiles(count)):
        label, objects = CLASSES[number % 2], [{"name": "x", "box": [4, 4, 20, 20]}] if number % 5 else []
        columns = {"label": label, "objects": objects, "split": "train"}
        rows.append(sample(encoded(image, "PNG"), image.size, **columns))
        if number % 5 == 1:
            copy = ImageOps.mirror(image) if number % 2 else image.resize((40, 40))
            other = {**columns, "label": CLASSES[(number + 1) % 2]}  # also where the copy has another label
            rows.append(sample(encoded(copy, "JPEG", quality=92), copy.size, **other))
    rows.append({**rows[0], "label": "dog"})  # byte for byte
    rows.append({**sample(b"no picture", (1, 1)), "label": "cat", "objects": [], "split": "train"})
    rows.append({**sample(encoded(Image.new("RGB", (9, 9), "red"), "PNG"), (9, 9)), "objects": [], "split": "train"})
    return rows


def recipe(data: Path | str, out: Path, **fields: Any) -> PartitionRecipe:
    return PartitionRecipe.model_validate({"data": str(data), "out": str(out), "per_class": 15, **fields})


def written(folder: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((folder / "dataset" / "data").iterdir())]
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def members(folder: Path, part: str) -> set[str]:
    """Return the contents of a part."""
    return {hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in written(folder) if row["part"] == part}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return rows_of()


@pytest.fixture(scope="module")
def run(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("run"), rows, group=7, extra=BOX)


@pytest.fixture(scope="module")
def parted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parted") / "out"
    lines: list[str] = []
    write_partition(recipe(run, out), lines.append)
    assert any("13 near copies are in no part; 1 have no label" in line for line in lines)
    assert "1 pictures cannot be decoded" in lines
    assert lines[-1] == "train one model with --split part=A,S, the other with --split part=B,S"
    return out


def pixels(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("L").resize((24, 24), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float64)


def test_rows_and_columns_stay_and_parts_are_beside_them(
    rows: Sequence[dict[str, Any]], parted: Path, tmp_path: Path
) -> None:
    after = written(parted)
    assert [{key: row[key] for key in row if key != "part"} for row in after] == list(rows)
    shards = sorted(map(str, parted.rglob("*.parquet")))
    typed = load_dataset("parquet", data_files=shards, split="train", cache_dir=str(tmp_path))
    assert typed.features["part"] == Value("string")
    facts = json.loads((parted / "partition.json").read_text())
    assert facts["kind"] == "partition"
    assert {part: sum(facts["counts"][part].values()) for part in "ABSX"} == {
        part: sum(row["part"] == part for row in after) for part in "ABSX"
    }


def test_parts_are_disjoint_by_content_and_near_content(parted: Path) -> None:
    alive = [row for row in written(parted) if row["part"]]
    contents = [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in alive]
    assert len(set(contents)) == len(contents) == 60  # one of each picture
    looks = np.stack([pixels(row["image"]["bytes"]) for row in alive])
    looks = looks - looks.mean(axis=(1, 2), keepdims=True)
    for view in (looks, looks[:, :, ::-1]):
        flat, own = view.reshape(len(looks), -1), looks.reshape(len(looks), -1)
        cosines = (flat @ own.T) / np.outer(np.linalg.norm(flat, axis=1), np.linalg.norm(own, axis=1))
        np.fill_diagonal(cosines, 0)
        assert cosines.max() < 0.9  # that of a planted copy is above 0.97


def test_attacked_parts_have_boxes_and_shared_ones_none(parted: Path) -> None:
    for row in written(parted):
        if row["part"] in ("A", "B"):
            assert row["objects"]
        if row["part"] == "S":
            assert not row["objects"]


def test_the_order_of_rows_and_the_shards_decide_nothing(
    rows: list[dict[str, Any]], parted: Path, tmp_path: Path
) -> None:
    order = np.random.default_rng(5).permutation(len(rows))
    write_shards(tmp_path / "run", [rows[n] for n in order], shards=3, group=5, extra=BOX)
    write_partition(recipe(tmp_path / "run", tmp_path / "out", batch=3), lambda _: None)
    assert all(members(tmp_path / "out", part) == members(parted, part) for part in "ABSX")
    other = recipe(tmp_path / "run", tmp_path / "other", seed=1)
    write_partition(other, lambda _: None)
    assert members(tmp_path / "other", "A") != members(parted, "A")


def test_copies_that_are_kept_are_where_the_picture_is(parted: Path, run: Path, tmp_path: Path) -> None:
    write_partition(recipe(run, tmp_path / "out", copies="keep"), lambda _: None)
    alone, together = written(parted), written(tmp_path / "out")
    for place, row in enumerate(alone):
        assert row["part"] is None or together[place]["part"] == row["part"]
    assert sum(bool(row["part"]) for row in together) == len(together) - 2  # no pixels, no label
    for first, second in itertools.pairwise(together):
        if second["image"]["path"] != first["image"]["path"] and second["width"] == 40:
            assert second["part"] == first["part"]


def test_a_larger_partition_leaves_the_public_part_of_this_one(run: Path, tmp_path: Path) -> None:
    for size in (3, 10):
        write_partition(recipe(run, tmp_path / str(size), per_class=size, largest=10), lambda _: None)
    assert members(tmp_path / "3", "X") == members(tmp_path / "10", "X")
    assert members(tmp_path / "3", "A") < members(tmp_path / "10", "A")


def test_two_models_train_on_what_they_should(parted: Path, tmp_path: Path) -> None:
    ids = {}
    for part in ("A,S", "B,S", "X"):
        dataset = open_dataset(str(parted), split=f"part={part}")
        ids[part] = {row["id"] for row in written(parted) if row["part"] in part.split(",")}
        assert dataset.count == len(ids[part])
    assert ids["A,S"] & ids["B,S"] == {row["id"] for row in written(parted) if row["part"] == "S"}
    assert not ids["X"] & (ids["A,S"] | ids["B,S"])
    tiny_training("simclr", str(parted), tmp_path / "a", split="part=A,S", steps=1)


def test_one_split_alone_is_parted_and_no_labels_are_one_class(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    half = [{**row, "split": "test" if n < 20 else "train", "label": "cat"} for n, row in enumerate(rows)]
    write_shards(tmp_path / "run", half, group=7, extra=BOX)
    write_partition(recipe(tmp_path / "run", tmp_path / "out", split="train", per_class=4), lambda _: None)
    assert all(row["part"] is None for row in written(tmp_path / "out") if row["split"] == "test")
    bare = [{"image": row["image"], "id": row["id"]} for row in rows]
    (tmp_path / "bare").mkdir()
    pq.write_table(pa.Table.from_pylist(bare), tmp_path / "bare" / "a.parquet")
    parted = write_partition(recipe(tmp_path / "bare", tmp_path / "plain", per_class=10), lambda _: None)
    assert {part: classes.total() for part, classes in parted.counts.items()} == {"A": 10, "B": 10, "S": 0, "X": 41}


def test_mistakes_are_sentences(run: Path, parted: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is something in it"):
        write_partition(recipe(run, run))
    with pytest.raises(UserError, match="has a column part already"):
        write_partition(recipe(parted, tmp_path / "out"))
    with pytest.raises(UserError, match=r"boxes: .* has no column 'regions'"):
        write_partition(recipe(run, tmp_path / "out", boxes="regions"))
    with pytest.raises(UserError, match=r"boxes: label of .* is not right: 'cat' is no list of boxes"):
        write_partition(recipe(run, tmp_path / "out", boxes="label"))
    with pytest.raises(ValidationError, match="largest is 3; it must be per_class, 15, or more"):
        recipe(run, tmp_path / "out", largest=3)
    assert not (tmp_path / "out").exists()


def test_nothing_to_attack_is_a_sentence(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    plain = [{**row, "objects": []} for row in rows]
    write_shards(tmp_path / "run", plain, extra=BOX)
    with pytest.raises(
        UserError, match=r"A would be empty: .* of two pictures with a label and boxes in column objects"
    ):
        write_partition(recipe(tmp_path / "run", tmp_path / "out"))
    two = [row for row in rows if row["label"] == "cat" and row["objects"]][:4:2]
    write_shards(tmp_path / "two", two, extra=BOX)
    for fields, message in (({}, "per_class: 15"), ({"largest": 20}, "largest: 20")):
        with pytest.raises(UserError, match=f"{message} is not right: it leaves no picture for X"):
            write_partition(recipe(tmp_path / "two", tmp_path / "out", **fields))
    broken = [{**row, "image": {"bytes": b"x", "path": "x"}} for row in rows]
    write_shards(tmp_path / "broken", broken, extra=BOX)
    with pytest.raises(UserError, match=r"none of the 75 pictures of .* can be decoded"):
        write_partition(recipe(tmp_path / "broken", tmp_path / "out"))


def test_the_command_writes_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["partition", "--data", str(run), "--per_class", "4", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "A: 8 pictures, 4 of each of 2 classes" in capsys.readouterr().out
    assert main(words) == 2
    with pytest.raises(UserError, match="per_class"):
        command(["partition", "--data", str(run), "--out", str(tmp_path / "other")])
