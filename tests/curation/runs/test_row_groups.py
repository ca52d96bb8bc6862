"""Row groups hold a bounded number of samples and bytes, and a shard without samples still loads."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.runs import row_groups
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output

SCHEMA = pa.schema([("number", pa.int64())])


def written(sizes: list[int], rows: int) -> pq.ParquetFile:
    """Write samples with pictures of some sizes; returns the file."""
    file = io.BytesIO()
    output = Output(file)
    groups = RowGroups(output, SCHEMA, rows)
    for number, size in enumerate(sizes):
        groups.add({"number": number}, size)
    groups.close()
    marker = output.finish("")
    assert marker.rows == len(sizes)
    return pq.ParquetFile(io.BytesIO(file.getvalue()))


def lengths(file: pq.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def test_groups_are_bounded_by_rows_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "GROUP_BYTES", 100)
    file = written([1, 1, 1, 60, 60, 1, 200, 1], rows=3)
    assert lengths(file) == [3, 2, 2, 1]  # full, 120 bytes, 201 bytes, the rest
    assert file.read()["number"].to_pylist() == list(range(8))


def test_a_shard_without_samples_has_no_row_group_and_its_schema() -> None:
    file = written([], rows=3)
    assert file.num_row_groups == 0
    assert file.schema_arrow == SCHEMA
