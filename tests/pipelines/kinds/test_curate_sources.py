"""What comes with the images goes through a whole run, and what does not is named."""

from __future__ import annotations

import json
from pathlib import Path

import pools
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar with captions, a broken sidecar, hidden members and a mask; a table; pictures with files beside them."""
    folder = tmp_path_factory.mktemp("sources")
    members = {
        **{"._a.png": b"x", "a.png": pools.png(pools.picture(0)), "a.txt": b"A", "a.mask.png": b"x"},
        **{"b.png": pools.png(pools.picture(1)), "b.json": b"[" * 100_000},
    }
    (folder / "shard.tar").write_bytes(pools.tar_of(members))
    rows = {
        "image": [{"bytes": pools.png(pools.picture(2)), "path": "photos/photo_0.png"}],
        "caption": ["C"],
        "license": ["cc-by-2.0"],
        "label": [3.0],
        "depth": [b"x"],
    }
    pq.write_table(pa.table(rows), folder / "table.parquet")
    pictures = {"d.png": pools.picture(3), "d.txt": b"D", "README.md": b"x", ".hidden": b"x"}
    pools.write(folder / "pictures", pictures)
    return folder


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> pools.Run:
    paths = [str(shards / name) for name in ("shard.tar", "table.parquet", "pictures")]
    return pools.curate({"pool": paths}, tmp_path_factory.mktemp("first") / "run", *pools.THRESHOLDS)


def test_run_json_and_report_say_what_each_source_gave(run: pools.Run) -> None:
    told = {row["name"]: {key: row[key] for key in ("images", "captions", "labels")} for row in run.facts["sources"]}
    assert told == {
        "pool-1": {"images": 2, "captions": 1, "labels": 0},
        "pool-2": {"images": 1, "captions": 1, "labels": 1},
        "pool-3": {"images": 1, "captions": 1, "labels": 0},
    }
    left = {(row["name"], part["what"]): part["count"] for row in run.facts["sources"] for part in row["left_out"]}
    assert left == {
        ("pool-1", "hidden members"): 1, ("pool-1", "*.mask.png"): 1, ("pool-1", ".json beside images"): 1,
        ("pool-2", "depth"): 1,
        ("pool-3", "hidden files"): 1, ("pool-3", "*.md"): 1,
    }  # fmt: skip
    assert [row["metadata"] for row in run.facts["sources"]] == [[], ["license"], []]
    page = (run.path / "report" / "index.html").read_text()
    assert all(what in page for what in ("*.mask.png", "holds bytes", "hidden members", "*.md", "license"))


def test_a_sidecar_that_cannot_be_read_is_a_dead_letter_of_its_image(run: pools.Run) -> None:
    letters = [(row["uri"], row["part"], row["error"]) for row in run.table("dead-letter")]
    assert letters == [("pool-1/shard.tar#b.png", "json", "RecursionError")]
    assert run.ledger["pool-1/shard.tar#b.png"]["status"] == "kept"


def test_samples_have_their_own_names_captions_labels_and_metadata(run: pools.Run) -> None:
    samples = {sample["image"]["path"]: sample for sample in run.samples}
    assert sorted(samples) == ["a.png", "b.png", "d.png", "photo_0.png"]
    assert {name: sample["captions"] for name, sample in samples.items()} == {
        "a.png": ["A"], "b.png": [], "d.png": ["D"], "photo_0.png": ["C"],
    }  # fmt: skip
    assert (samples["photo_0.png"]["label"], samples["photo_0.png"]["metadata"]) == ("3", '{"license": "cc-by-2.0"}')


def test_a_second_run_over_the_first_keeps_it_all(run: pools.Run, tmp_path: Path) -> None:
    again = pools.curate({"pool": run.path}, tmp_path / "again", *pools.THRESHOLDS)
    columns = ("id", "label", "captions", "metadata", "image")
    first, second = (
        sorted(({name: sample[name] for name in columns} for sample in one.samples), key=lambda sample: sample["id"])
        for one in (run, again)
    )
    assert first == second


def test_the_closing_table_names_sources_and_what_was_left_out(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools.curate({"pool": shards / "table.parquet"}, tmp_path / "run", *pools.THRESHOLDS)
    said = " ".join(capsys.readouterr().err.split())
    assert "source files images dead captions labels metadata pool pool 1 1 0 1 1 license" in said
    assert "left out of pool: 1 depth (holds bytes)" in said


def test_the_bytes_do_not_depend_on_the_size_of_units(shards: Path, run: pools.Run, tmp_path: Path) -> None:
    paths = [str(shards / name) for name in ("shard.tar", "table.parquet", "pictures")]
    other = pools.curate({"pool": paths}, tmp_path / "run", *pools.THRESHOLDS, "--unit_rows", "1")
    assert run.hashes("dataset/data", "dead-letter") == other.hashes("dataset/data", "dead-letter")
    assert json.dumps(run.facts["sources"]) == json.dumps(other.facts["sources"])
