"""`granary convert`: the shards of a run as tars that webdataset reads, and granary again."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pools
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from every_pipeline import RENDER
from PIL import Image

from granary.curation.exchange.webdataset import ending_of, members_of
from granary.curation.store.schema import named
from granary.pipelines import command


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("render")
    (folder / "render.yaml").write_text(yaml.safe_dump(RENDER))
    words = ["render", "--config", str(folder / "render.yaml"), "--out", str(folder / "run"), "--renderer.servers", "1"]
    assert command.main(words) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curate")
    for number in range(12):
        name = ("cat", "dog")[number % 2]
        pools.write(folder / "pool" / name, {f"{number}.png": pools.picture(number), f"{number}.txt": b"one\xc3\xa9"})
    words = ("--pool.labels", "folder", "--shards.rows", "5")
    return pools.curate({"pool": folder / "pool"}, folder / "run", *words).path


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [row for shard in sorted(run.glob("dataset/data/*.parquet")) for row in pq.read_table(shard).to_pylist()]


def converted(run: Path, out: Path, *words: str) -> list[Path]:
    assert command.main(["convert", str(run), "--out", str(out), *words]) == 0
    return sorted(out.glob("*.tar"))


def test_webdataset_reads_the_bytes_captions_and_classes_of_every_row(curated: Path, tmp_path: Path) -> None:
    tars = converted(curated, tmp_path / "tars")
    assert [tar.stem for tar in tars] == [shard.stem for shard in sorted(curated.glob("dataset/data/*.parquet"))]
    read = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False))
    rows = rows_of(curated)
    assert [one["png"] for one in read] == [row["image"]["bytes"] for row in rows]
    assert [int(one["cls"]) for one in read] == [row["label"] for row in rows]
    assert {one["txt"].decode() for one in read} == {"oneé"}
    names = [json.loads(one["json"])["label"] for one in read]
    assert sorted(names) == ["cat"] * 6 + ["dog"] * 6
    assert len({one["__key__"] for one in read}) == len(rows)
    decoded = next(iter(webdataset.WebDataset(str(tars[0]), shardshuffle=False).decode("rgb8").to_tuple("png", "cls")))
    assert decoded[0].shape == (72, 72, 3)
    assert decoded[1] == rows[0]["label"]


def test_granary_reads_them_again_with_the_same_ids_labels_and_captions(curated: Path, tmp_path: Path) -> None:
    converted(curated, tmp_path / "tars")
    again = pools.curate({"pool": tmp_path / "tars"}, tmp_path / "again", "--shards.rows", "5")

    def told(run: Path) -> list[tuple[str, str, list[str]]]:
        tables = [named(pq.read_table(shard)) for shard in run.glob("dataset/data/*.parquet")]
        rows = [row for table in tables for row in table.to_pylist()]
        return sorted((row["id"], row["label"], row["captions"]) for row in rows)

    assert told(again.path) == told(curated)


def test_masks_depth_and_factors_of_renders_come_along(rendered: Path, tmp_path: Path) -> None:
    tars = converted(rendered, tmp_path / "tars", "--workers", "1")
    read = list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False))
    for one, row in zip(read, rows_of(rendered), strict=True):
        mask = np.asarray(Image.open(io.BytesIO(one["mask.png"])))
        assert mask.tolist() == np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"]))).tolist()
        assert np.load(io.BytesIO(one["depth.npz"]))["depth"].shape == (32, 32)
        assert json.loads(one["json"])["camera_yaw"] == row["camera_yaw"]


def test_the_same_bytes_whatever_the_workers_and_a_killed_one_goes_on(curated: Path, tmp_path: Path) -> None:
    first = converted(curated, tmp_path / "first", "--workers", "1")
    second = converted(curated, tmp_path / "second", "--workers", "3")
    assert [tar.read_bytes() for tar in first] == [tar.read_bytes() for tar in second]
    second[0].with_suffix(".json").unlink()  # as if killed before its note
    second[1].write_bytes(second[1].read_bytes()[:-1024])
    before = second[2].stat().st_mtime_ns
    assert converted(curated, tmp_path / "second") == second
    assert [tar.read_bytes() for tar in first] == [tar.read_bytes() for tar in second]
    assert second[2].stat().st_mtime_ns == before


def test_what_is_not_right_is_one_sentence(curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(run: Path, out: Path) -> str:
        capsys.readouterr()
        assert command.main(["convert", str(run), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    assert "is not a finished run" in refused(tmp_path, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    assert "holds notes.txt, which is not of this run" in refused(curated, tmp_path / "mine")
    shutil.copytree(curated, tmp_path / "damaged")
    shard = sorted(tmp_path.glob("damaged/dataset/data/*.parquet"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    assert "cannot be read" in refused(tmp_path / "damaged", tmp_path / "out")
    assert not (tmp_path / "out" / f"{shard.stem}.tar").exists()


def test_values_that_json_cannot_hold_and_names_that_tars_should_not() -> None:
    row = {
        "image": {"bytes": pools.png(pools.picture(0)), "path": "../a.b/c.PNG"},
        "images": [{"bytes": b"\xff", "path": "x.txt"}, {"bytes": b"\x93NUMPY", "path": None}],
        "a.b/c": b"x",
        "score": float("nan"),
        "captions": ["\ud800 lone", "second"],
        "label": -1,
    }
    members = members_of("key", row, {"label": ["cat"]})
    assert list(members.files) == [
        "key.png",
        "key.images.0.bin",
        "key.images.1.npy",
        "key.a_b_c.bin",
        "key.txt",
        "key.json",
    ]
    told = json.loads(members.files["key.json"])
    assert told == {"score": None, "captions": ["? lone", "second"], "label": None}
    assert not members_of("key", {"image": None}, {}).has_bytes
    assert ending_of(pools.png(pools.picture(0)), "") == "png"


def test_a_folder_for_fiftyone_has_every_readable_picture_and_its_row_of_the_ledger(
    curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read as FiftyOne's CSVDataset reads it: a file of `data` for each row of labels.csv, all cells fields."""
    assert command.main(["convert", str(curated), "--out", str(tmp_path / "out"), "--format", "fiftyone"]) == 0
    assert "12 pictures" in capsys.readouterr().out
    with (tmp_path / "out" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ledger = {row["uri"]: row for part in curated.glob("ledger/*.parquet") for row in pq.read_table(part).to_pylist()}
    assert {row["filepath"] for row in rows} == {path.name for path in (tmp_path / "out" / "data").iterdir()}
    assert {row["uri"] for row in rows} == ledger.keys()
    for row in rows:
        known, data = ledger[row["uri"]], (tmp_path / "out" / "data" / row["filepath"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"] == known["sha256"]
        assert [row[name] for name in ("granary_id", "status", "stage")] == [
            known[n] for n in ("id", "status", "stage")
        ]
        assert float(row["blur"]) == pytest.approx(known["blur"], rel=1e-5)
    assert not {"id", "tags", "metadata"} & rows[0].keys()  # names of FiftyOne's own


def test_cleanvision_reads_that_folder(curated: Path, tmp_path: Path) -> None:
    cleanvision = pytest.importorskip("cleanvision")
    assert command.main(["convert", str(curated), "--out", str(tmp_path / "out"), "--format", "fiftyone"]) == 0
    lab = cleanvision.Imagelab(data_path=str(tmp_path / "out" / "data"), verbose=False)
    lab.find_issues({"dark": {}}, n_jobs=1, verbose=False)
    assert sorted(Path(path).name for path in lab.issues.index) == sorted(
        path.name for path in (tmp_path / "out" / "data").iterdir()
    )


def test_a_folder_of_something_else_is_left_alone(
    curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert command.main(["convert", str(curated), "--out", str(tmp_path), "--format", "fiftyone"]) != 0
    assert "mine.txt, which is not of this run" in capsys.readouterr().err
