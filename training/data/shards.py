"""The rows of a dataset: where its Parquet shards are, which row groups they have, which rows belong to a split.

Only footers and, for a split, two small columns are read when a dataset is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.runs.run import read_table
from granary.curation.store import schema, storage
from granary.curation.store.sampling import priority

PLACES = ("dataset/data", "data", "")  # where shards lie in a run directory, in a dataset, in a folder of shards
READERS = 16  # threads that read footers: a remote one takes a round trip


class RowGroup(NamedTuple):
    """A row group of a shard.

    Args:
        chosen: numbers of the rows of the split in it, None for all.
    """

    url: str
    number: int
    rows: int
    chosen: NDArray[np.int64] | None


@dataclass(frozen=True)
class Dataset:
    """An opened dataset: its row groups in order, and the columns it has."""

    path: str
    groups: list[RowGroup]
    columns: list[str]

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(group.rows for group in self.groups)


def find_shards(path: str) -> list[str]:
    """Return the URLs of the Parquet files of a run directory, a dataset, a folder or one file; none is a UserError."""
    if path.endswith(".parquet"):
        return [path]
    for place in PLACES:
        folder = storage.join(path, place) if place else path
        names = [name for name in storage.names(folder) if name.endswith(".parquet")]
        if names:
            return [storage.join(folder, name) for name in names]
    raise UserError(f"data: {path} has no Parquet shards; give a granary run, its dataset folder or a folder of shards")


def open_dataset(
    path: str, needs: Sequence[str] = ("image",), split: str | None = None, holdout: float = 0.1, why: str = "this"
) -> Dataset:
    """Open a dataset.

    Args:
        path: what `find_shards` takes.
        needs: columns that must be there.
        split: rows of this split only. Shards with a `split` column are asked; for others "test" is the share
            `holdout` of the ids, drawn by hash, "train" the rest.
        holdout: see split; in 0..1.
        why: who needs the columns, for the message.

    Raises:
        UserError: no shards, unreadable shards, missing columns, an unknown split, no rows.
    """
    urls = find_shards(path)
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(_footer, urls))
    columns = _columns(path, footers[0][0])
    missing = [name for name in needs if name not in columns]
    if missing:
        raise UserError(
            f"data: {path} has no column {missing[0]!r}, which {why} needs; its columns are {', '.join(columns)}"
        )
    groups = [
        RowGroup(url, i, n, None) for url, (_, rows) in zip(urls, footers, strict=True) for i, n in enumerate(rows)
    ]
    if split is not None:
        groups = _of_split(groups, columns, split, holdout)
    groups = [group for group in groups if group.rows]
    if not groups:
        raise UserError(f"data: {path} has no rows" + (f" in split {split!r}" if split else ""))
    return Dataset(path, groups, columns)


def _footer(url: str) -> tuple[pa.Schema, list[int]]:
    """Return the columns of a shard and the rows of its row groups."""
    try:
        with storage.open_read(url) as file:
            footer = pq.ParquetFile(file)
            return footer.schema_arrow, [footer.metadata.row_group(i).num_rows for i in range(footer.num_row_groups)]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data: {url} cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _columns(path: str, schema: pa.Schema) -> list[str]:
    """Return the names of the columns; an image must be a struct with its bytes."""
    kind = schema.field("image").type if "image" in schema.names else None
    if kind is not None and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise UserError(f"data: the column image of {path} is {kind}; granary's shards have a struct of bytes and path")
    return list(schema.names)


def _of_split(groups: list[RowGroup], columns: Sequence[str], split: str, holdout: float) -> list[RowGroup]:
    """Choose the rows of a split in every group."""
    stated = "split" in columns
    if not stated and split not in ("train", "test"):
        raise UserError(f"split: {split!r} is not right: shards without a column split have train and test")
    column = "split" if stated else "id"
    if column not in columns:
        raise UserError("split: the shards have neither a column split nor ids to draw one by; leave split out")
    chosen = []
    for url in dict.fromkeys(group.url for group in groups):
        values = read_table(url, [column])[column].to_numpy(zero_copy_only=False).astype(str)
        inside = values == split if stated else held_out(values, holdout) == (split == "test")
        start = 0
        for group in groups:
            if group.url == url:
                rows = np.flatnonzero(inside[start : start + group.rows])
                chosen.append(RowGroup(url, group.number, len(rows), rows))
                start += group.rows
    return chosen


def held_out(ids: NDArray[np.str_], holdout: float) -> NDArray[np.bool_]:
    """Say for each id whether it is in the share drawn for testing: equal ids fall on the same side."""
    return priority(0, ids, "holdout") < np.uint64(min(holdout * 2.0**64, 2.0**64 - 2048))


def read_group(group: RowGroup, columns: Sequence[str]) -> pa.RecordBatch:
    """Read columns of the chosen rows of a row group; classes by their names."""
    table = schema.named(read_table(group.url, list(columns), group.number))
    chosen = table if group.chosen is None else table.take(pa.array(group.chosen))
    return chosen.combine_chunks().to_batches()[0]


def class_names(datasets: Sequence[Dataset], column: str = "label") -> list[str]:
    """Return the sorted labels that occur; "", "-1" and null are no label."""
    return list(class_shares(datasets, [1.0] * len(datasets), column))


def class_shares(datasets: Sequence[Dataset], weights: Sequence[float], column: str = "label") -> dict[str, float]:
    """Return the sorted labels that occur, each with its share of the samples of a mixture; no label is no key."""
    shares: dict[str, float] = {}
    for dataset, weight in zip(datasets, weights, strict=True):
        for group in dataset.groups:
            for entry in read_group(group, [column])[column].cast(pa.string()).value_counts().to_pylist():
                label, share = entry["values"], entry["counts"] / dataset.count * weight / sum(weights)
                if label is not None and label not in schema.NO_CLASS:
                    shares[label] = shares.get(label, 0.0) + share
    return {label: shares[label] for label in sorted(shares, key=schema.natural)}


class GroupRows:
    """The chosen rows of a row group: small columns as Python lists, pictures as bytes on request."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.count = batch.num_rows
        self.images = batch["image"].field("bytes") if "image" in batch.schema.names else None
        self.columns = {name: batch[name].to_pylist() for name in batch.schema.names if name != "image"}

    def image(self, row: int) -> bytes:
        """Return the bytes of a picture; none where there are none."""
        return b"" if self.images is None else self.images[row].as_py() or b""

    def cell(self, name: str, row: int) -> Any:
        """Return a value; None where there is no such column."""
        column = self.columns.get(name)
        return None if column is None else column[row]


class GroupReader:
    """Reads row groups and keeps the last few: rows of a shuffle window come from the same few groups."""

    def __init__(self, columns: Sequence[str], keep: int) -> None:
        self.read = functools.lru_cache(maxsize=keep)(functools.partial(self._read, tuple(columns)))
        self.groups: dict[tuple[str, int], RowGroup] = {}

    def rows(self, group: RowGroup) -> GroupRows:
        """Return the chosen rows of a group."""
        self.groups[group.url, group.number] = group
        return self.read(group.url, group.number)

    def _read(self, columns: tuple[str, ...], url: str, number: int) -> GroupRows:
        return GroupRows(read_group(self.groups[url, number], columns))
