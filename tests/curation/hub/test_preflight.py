"""What the preflight says of a publication: nothing of a good one, one sentence for each fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.hub import preflight
from granary.curation.hub.card import write_card
from granary.curation.hub.client import Upload
from granary.curation.hub.secrets import columns_with_secrets
from granary.curation.store import schema

FEATURES = schema.sample_features()
SCHEMA = schema.arrow_schema(FEATURES)
ROW = {"id": "0" * 32, "image": {"bytes": b"x" * 1000, "path": "a.png"}, "captions": []}


def upload(path: Path, table: pa.Table) -> Upload:
    pq.write_table(table, path)
    return Upload(f"data/{path.name}", path.stat().st_size, str(path))


def good() -> pa.Table:
    return pa.Table.from_pylist([ROW], SCHEMA)


def found(files: list[Upload], card: str = "", features: datasets.Features = FEATURES, token: str = "") -> list[str]:
    facts = {"name": "cats", "samples": 1, "shards": 1, "bytes": 1}
    text = card or write_card(facts, {"licence": "mit"}, {"default": features})
    return list(preflight.problems({"default": files}, {"README.md": text}, token))


def test_a_good_publication_has_no_problem(tmp_path):
    files = [upload(tmp_path / name, good()) for name in ("a", "b")]
    assert found(files) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("source", {"name": "a", "uri": "a/https://me:pw@host/a.png"}),
        ("source", {"name": "a", "uri": "a/s3://bucket/a.png?X-Amz-Signature=pw"}),
        ("source", {"name": "a", "uri": "a/file:///home/pw/a.png"}),
        ("image", {"bytes": b"", "path": "a.png?sig=pw"}),
        ("image", {"bytes": b"", "path": "https://host/a.png?token=pw"}),
        ("captions", ["https://host/a.png?token=pw"]),
    ],
)
def test_addresses_with_secrets_are_not_sent(tmp_path, column, value):
    rows = [ROW, ROW | {column: value}]
    problems = found([upload(tmp_path / "a", pa.Table.from_pylist(rows, SCHEMA))])
    harmless = column == "captions" or "://" not in str(value)  # a name is no address, a caption is the author's text
    assert len(problems) == (0 if harmless else 1)
    for problem in problems:
        assert f": 1 values of column {column}." in problem
        assert "pw" not in problem


def test_addresses_deep_in_other_columns_are_looked_at_too(tmp_path):
    nested = [[{"url": "http://a:pw@b/c", "n": 1}], None, [{"url": None, "n": 2}, {"url": "http://b/c", "n": 3}]]
    metadata = ['{"u": "http:\\/\\/a:pw@b\\/c"}', None, '{"u": "http://b/c"}']
    pq.write_table(pa.table({"pages": nested, "metadata": metadata, "n": [1, 2, 3]}), tmp_path / "a")
    with open(tmp_path / "a", "rb") as file:
        assert dict(columns_with_secrets(file)) == {"pages.list.element.url": 1, "metadata": 1}


def without_metadata() -> pa.Table:
    return good().replace_schema_metadata(None)


def null_column() -> pa.Table:
    return good().set_column(4, "label", pa.nulls(1))


def null_inside() -> pa.Table:
    return good().set_column(5, "captions", pa.array([[]], pa.list_(pa.null())))


def narrower() -> pa.Table:
    return good().set_column(2, "width", pa.array([1], pa.int16()))


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ([good, narrower], "b has another schema than data/a"),
        ([good, without_metadata], "b has another schema than data/a"),
        ([without_metadata], "column image holds images that are not typed as Image"),
        ([null_column], "column label has the type null"),
        ([null_inside], "column captions has the type null"),
        ([narrower], "the card states other features"),
        ([], "there is no Parquet file to send"),
    ],
)
def test_faulty_shards_are_named(tmp_path: Path, tables: list[Callable[[], pa.Table]], sentence: str):
    said = found([upload(tmp_path / name, make()) for name, make in zip("ab", tables, strict=False)])
    assert any(sentence in one for one in said)
    assert all(";" in one and "\n" not in one for one in said)


def test_a_broken_shard_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"PAR1 and nothing more")
    assert "data/a is not a readable Parquet file" in found([Upload("data/a", 21, str(tmp_path / "a"))])[0]


@pytest.mark.parametrize(
    ("limit", "value", "sentence"),
    [
        ("FOLDER_FILES", 1, "data/ would hold 2 files"),
        ("REPOSITORY_FILES", 1, "the repository would hold 2 files"),
        ("FILE_BYTES", 1000, "and the Hub takes files under"),
        ("GROUP_BYTES", 1000, "has a row group of"),
    ],
)
def test_limits_hold_at_their_value(tmp_path, monkeypatch, limit, value, sentence):
    files = [upload(tmp_path / name, good()) for name in ("a", "b")]
    monkeypatch.setattr(preflight, limit, value)
    assert any(sentence in one for one in found(files))
    monkeypatch.setattr(preflight, limit, 10**7)
    assert found(files) == []


def test_the_limits_are_those_of_the_hub():
    assert (preflight.FOLDER_FILES, preflight.REPOSITORY_FILES) == (10_000, 100_000)
    assert (preflight.FILE_BYTES, preflight.GROUP_BYTES) == (50 * 10**9, 300 * 10**6)


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "aB3" * 12,
        "AKIA" + "ABCD1234" * 2,
        "ghp_" + "a1" * 18,
        "-----BEGIN RSA PRIVATE KEY-----",
        "https://me:hunter2@example.org/images",
        "https://bucket.example/images?X-Amz-Signature=0123",
        "my-own-token-of-another-shape",
    ],
)
def test_a_secret_in_the_card_is_found_and_not_repeated(tmp_path, secret):
    files = [upload(tmp_path / "a", good())]
    facts = {"name": "cats", "samples": 1, "shards": 1, "bytes": 1}
    card = write_card(facts, {"licence": "mit"}, {"default": FEATURES}) + f"\nSee {secret} there.\n"
    said = found(files, card, token="my-own-token-of-another-shape")
    assert len(said) == 1
    assert "README.md holds what looks like" in said[0]
    assert secret not in said[0]


@pytest.mark.parametrize(
    ("licence", "sentence"), [("unknown", "states no licence"), ("CC BY 4.0", "not an identifier")]
)
def test_the_licence_must_be_stated(tmp_path, licence, sentence):
    facts = {"name": "cats", "samples": 1, "shards": 1, "bytes": 1}
    card = write_card(facts, {"licence": licence}, {"default": FEATURES})
    assert [sentence in one for one in found([upload(tmp_path / "a", good())], card)] == [True]
