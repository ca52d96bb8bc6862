"""The Croissant file, read by the reference implementation of its format, where that is installed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from PIL import Image

from granary.curation.hub.croissant import croissant
from granary.curation.store import schema

EMBEDDINGS = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float16(), 4))])
FEATURES = {
    "default": schema.curated_features(),
    "ledger": Features.from_arrow_schema(schema.LEDGER),
    "embeddings": Features.from_arrow_schema(EMBEDDINGS),
}
ADDRESS = "https://hub.example/datasets/org/cats"


def png(colour: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), colour).save(file, "PNG")
    return file.getvalue()


def write_repository(folder: Path) -> list[dict]:
    """Write the Parquet files of two configs as they stand in a repository; returns the rows of the first."""
    rows = [
        {
            "id": f"{number:032x}",
            "image": {"bytes": png((number, 0, 9)), "path": f"{number}.png"},
            "width": 5,
            "height": 4,
            "captions": ["one", "two"],
            "source": {"name": "pool", "uri": f"pool/{number}.png"},
            "seed_ids": ["s"],
            "similarities": [0.5],
        }
        for number in range(3)
    ]
    (folder / "data").mkdir()
    samples = pa.Table.from_pylist(rows, schema.arrow_schema(schema.curated_features()))
    pq.write_table(samples.slice(0, 2), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(samples.slice(2), folder / "data" / "test-00000-of-00001.parquet")
    (folder / "embeddings").mkdir()
    vectors = pa.Table.from_pylist([{"id": "a", "embedding": [0.5, 0, 0, 1]}], EMBEDDINGS)
    pq.write_table(vectors, folder / "embeddings" / "part-00000-of-00001.parquet")
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_reference_implementation_finds_no_error_and_reads_the_pictures(tmp_path, caplog, monkeypatch):
    jsonpath = pytest.importorskip("jsonpath_ng", reason="needs jsonpath-ng")
    monkeypatch.setitem(sys.modules, "jsonpath_rw", jsonpath)  # its successor, the same calls
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant")
    rows = write_repository(tmp_path)
    tree = json.loads(croissant("cats", "cc0-1.0", ADDRESS, FEATURES, {"default": ["train", "test"]}))
    dataset = mlcroissant.Dataset(jsonld=tree, mapping={"repository": str(tmp_path)})
    assert not dataset.metadata.ctx.issues.errors
    assert "@context` is not standard" not in caplog.text
    found = sorted(dataset.records("default"), key=lambda record: record["default/id"])
    assert [record["default/split"] for record in found] == [b"train", b"train", b"test"]
    assert [record["default/id"].decode() for record in found] == [row["id"] for row in rows]
    assert [record["default/image"].getpixel((0, 0)) for record in found] == [(0, 0, 9), (1, 0, 9), (2, 0, 9)]
    assert found[0]["default/captions"] == [b"one", b"two"]
    assert found[0]["default/source"]["default/source/uri"] == b"pool/0.png"
    (vector,) = dataset.records("embeddings")
    assert list(vector["embeddings/embedding"]) == [0.5, 0, 0, 1]
