"""A dataset written again keeps its rows, its row groups and its splits, whatever its shards are called."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.errors import UserError
from granary.training.data.rewritten import check_new, write_again
from granary.training.data.shards import open_dataset


def test_shards_of_one_name_and_splits_of_folders_are_kept(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 10)):
        (tmp_path / "data" / split).mkdir(parents=True)
        table = pa.table({"id": [str(n) for n in range(first, first + 10)], "x": list(range(10))})
        pq.write_table(table, tmp_path / "data" / split / "0000.parquet", row_group_size=4)
    dataset = open_dataset(str(tmp_path / "data"), ())
    write_again(
        dataset,
        str(tmp_path / "out"),
        "part",
        lambda group: pa.array([str(group.start + n) if n else None for n in range(group.rows)]),
    )
    again = open_dataset(str(tmp_path / "out"), ())
    assert [group.rows for group in again.groups] == [group.rows for group in dataset.groups]
    for split, count in (("train", 10), ("test", 10)):
        old, new = (open_dataset(path, (), split) for path in (dataset.path, again.path))
        assert old.count == new.count == count
    rows = [row for url in dict.fromkeys(group.url for group in again.groups) for row in pq.read_table(url).to_pylist()]
    assert sorted(int(row["id"]) for row in rows) == list(range(20))
    starts = {group.start for group in dataset.groups}
    assert [row["part"] for row in rows] == [None if n in starts else str(n) for n in range(20)]
    with pytest.raises(UserError, match=r"out: .* there is something in it"):
        check_new(str(tmp_path / "out"), dataset, "part")
    with pytest.raises(UserError, match="has a column part already"):
        check_new(str(tmp_path / "new"), again, "part")
