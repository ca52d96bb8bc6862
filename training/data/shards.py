"""The rows of a dataset: where its Parquet shards are, which row groups they have, which rows belong to a split.

Only footers and, for a split, two small columns are read when a dataset is opened.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.runs.tables import read_table
from granary.curation.store import schema, storage
from granary.training.data.columns import SEVERAL, Layout, check_layout, kind_of, layout_of, reader_of
from granary.training.data.splits import Term, held_out, named_splits, terms_of
from granary.training.data.table import USUAL, Columns

Texts = NDArray[np.str_]
READERS = 16  # threads that read footers: a remote one takes a round trip


class RowGroup(NamedTuple):
    """A row group of a shard.

    Args:
        url, number: where it is.
        rows: how many of its rows are read.
        chosen: numbers of the rows of the split in it, None for all.
        first: number of its first row in the shard.
        layout: what the shard has.
        start: number of the first row that is read among those of the dataset.
        size: bytes of the whole group.
    """

    url: str
    number: int
    rows: int
    chosen: NDArray[np.int64] | None
    first: int
    layout: Layout
    start: int = 0
    size: int = 0


@dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Args:
        path: where it is.
        groups: its row groups in order.
        columns: our names of the columns that every shard has, and "id", which every row has.
        states_split: whether a column or the names of its shards say which split a row belongs to.
    """

    path: str
    groups: list[RowGroup]
    columns: list[str]
    states_split: bool = False

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(group.rows for group in self.groups)


def find_shards(path: str, config: str = "data") -> list[str]:
    """Return the URLs of the Parquet files of a run directory, a dataset, a folder or one file; none is a UserError.

    Args:
        path: where they are looked for.
        config: folder of a dataset that they lie in.
    """
    if path.endswith(".parquet"):
        return [path]
    for place in (f"dataset/{config}", config, ""):
        shards = _parquet_files(storage.join(path, place) if place else path)
        if shards:
            return shards
    shards = [shard for name in storage.names(path) for shard in _parquet_files(storage.join(path, name))]
    if shards:  # a folder for each split, as the Hub's conversion to Parquet has them
        return shards
    raise UserError(f"data: {path} has no Parquet shards; give a granary run, its dataset folder or a folder of shards")


def _parquet_files(folder: str) -> list[str]:
    return [storage.join(folder, name) for name in storage.names(folder) if name.endswith(".parquet")]


def open_dataset(
    path: str,
    needs: Sequence[str] = ("image",),
    split: str | None = None,
    holdout: float = 0.1,
    why: str = "this",
    columns: Columns = USUAL,
    categories: Sequence[str] = (),
    config: str = "data",
) -> Dataset:
    """Open a dataset.

    Args:
        path: what `find_shards` takes.
        needs: columns that must be there.
        split: rows of this split only, of several (`train,shared`), with values in a column (`place=sea,moon`), or all
            at once (`train & place=sea`). A column `split` says which they are, else the names of the shards or of
            their folders where there are several, as on the Hub: data/SPLIT-00000-of-00001.parquet, SPLIT/NAME.parquet,
            "val" for validation; for others "test" is the share `holdout` of the ids, drawn by hash, "train" the rest.
        holdout: see split; in 0..1.
        why: who needs the columns, for the message.
        columns: their names, where they are not granary's.
        categories: columns, among the needs, that are read as labels are.
        config: folder of the dataset that the shards lie in.

    Raises:
        UserError: no shards, unreadable shards, columns that are missing or of another type, an unknown split, no rows.
    """
    urls = find_shards(path, config)
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(_footer, urls))
    layouts = [layout_of(schema, columns) for schema, _ in footers]
    for url, layout in zip(urls, layouts, strict=True):
        where = path if layout.columns == layouts[0].columns else url
        check_layout(layout, columns, needs, where, why, categories)
    shards = list(zip(urls, layouts, [sizes for _, sizes in footers], strict=True))
    groups = [group for url, layout, sizes in shards for group in _groups(url, layout, sizes)]
    there = [name for name in layouts[0].names if all(name in layout.names for layout in layouts)]
    named = None if "split" in there else named_splits(urls)
    states = "split" in there or named is not None
    if split is not None:
        terms = [term if term.column or not named else term.among(named.values()) for term in terms_of(split)]
        tested = [term.column for term in terms if term.column]
        for url, layout in zip(urls, layouts, strict=True):
            check_layout(layout, columns, tested, url, "split", tested)
        stated_by = functools.partial(_stated, named=named, states=states, holdout=holdout)
        groups = _of_split(groups, terms, stated_by, path)
    groups = [group for group in groups if group.rows]
    if not groups:
        raise UserError(f"data: {path} has no rows" + (f" in split {split!r}" if split else ""))
    starts = itertools.accumulate((group.rows for group in groups), initial=0)
    groups = [group._replace(start=start) for group, start in zip(groups, starts, strict=False)]
    return Dataset(path, groups, list(dict.fromkeys([*there, "id"])), states)


def _footer(url: str) -> tuple[pa.Schema, list[tuple[int, int]]]:
    """Return the columns of a shard, and rows and bytes of each of its row groups."""
    try:
        with storage.open_read(url) as file:
            footer = pq.ParquetFile(file)
            groups = [footer.metadata.row_group(number) for number in range(footer.num_row_groups)]
            return footer.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups]
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data: {url} cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _groups(url: str, layout: Layout, sizes: Sequence[tuple[int, int]]) -> Iterator[RowGroup]:
    """Yield the row groups of a shard.

    Args:
        url, layout: where it is and what it has.
        sizes: rows and bytes of each group.
    """
    first = 0
    for number, (count, size) in enumerate(sizes):
        yield RowGroup(url, number, count, None, first, layout, size=size)
        first += count


def _of_split(
    groups: list[RowGroup], terms: Sequence[Term], stated_by: Callable[[list[RowGroup], str | None], Texts], path: str
) -> list[RowGroup]:
    """Choose the rows that a split asks for in every group.

    Args:
        groups: all of them, shard by shard.
        terms: of the split; all must hold.
        stated_by: (groups of a shard, column) -> the value of each row of the shard.
        path: of the dataset, for messages.
    """
    chosen: list[RowGroup] = []
    there: list[set[str]] = [set() for _ in terms]
    for _, members in itertools.groupby(groups, lambda group: group.url):
        shard = list(members)
        inside: NDArray[np.bool_] = np.array(True)
        for term, values in zip(terms, there, strict=True):
            stated = stated_by(shard, term.column)
            values.update(np.unique(stated).tolist())
            inside = inside & np.isin(stated, term.values)
        for group in shard:
            rows = np.flatnonzero(inside[group.first : group.first + group.rows])
            chosen.append(group._replace(rows=len(rows), chosen=rows))
    for term, values in zip(terms, there, strict=True):
        term.check(sorted(values - {""}, key=schema.natural), path)
    return chosen


def _stated(
    shard: list[RowGroup], column: str | None, named: Mapping[str, str] | None, states: bool, holdout: float
) -> Texts:
    """Return the value of a column for each row of a whole shard, "" for none; column None is the split.

    Args:
        shard: its row groups.
        column: our name of it.
        named: the split of each shard where names say it and no column does.
        states: whether names or a column say it.
        holdout: see `open_dataset`.
    """
    first = shard[0]
    if column is None and named is not None:
        return np.full(sum(group.rows for group in shard), named[first.url])
    if column is None and not states:
        ids = _read(first, ["id"], None)["id"].to_numpy(zero_copy_only=False).astype(str)
        return np.where(held_out(ids, holdout), "test", "train")
    name = column or "split"
    return _read(first, [name], None, [name])[name].fill_null("").to_numpy(zero_copy_only=False).astype(str)


def read_group(group: RowGroup, columns: Sequence[str], categories: Collection[str] = ()) -> pa.RecordBatch:
    """Read columns of the chosen rows of a row group, in granary's types: pictures as bytes, a source as its uri.

    A row without an id has the name of its shard and its number there; other columns that are not there are null.

    Args:
        group: which.
        columns: our names.
        categories: those that are read as labels are.
    """
    return _read(group, columns, group.number, categories)


def _read(
    group: RowGroup, columns: Sequence[str], number: int | None, categories: Collection[str] = ()
) -> pa.RecordBatch:
    """Read columns of a row group, or of its whole shard where the number is None."""
    layout = group.layout
    table = read_table(group.url, layout.stored(columns), number)
    numbers = np.arange(len(table)) if group.chosen is None else group.chosen
    if group.chosen is not None:
        table = table.take(pa.array(numbers))
    first = 0 if number is None else group.first
    arrays = {}
    for name in columns:
        if name in layout.names:
            stored = table[layout.names[name]].combine_chunks()
            arrays[name] = reader_of(name, categories).convert(stored, layout.classes.get(name))
        else:
            arrays[name] = pa.nulls(len(numbers), pa.string())
    if "id" in arrays and arrays["id"].null_count:
        shard = group.url.rsplit("/", 1)[-1]
        arrays["id"] = pc.coalesce(arrays["id"], pa.array([f"{shard}#{first + row}" for row in numbers]))
    return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))


def check_kinds(datasets: Sequence[Dataset], columns: Sequence[str]) -> None:
    """Raise UserError where a column without a reader of its own is not of one kind in all shards."""
    for name in (name for name in columns if name != SEVERAL):
        kinds = {kind_of(group.layout.types[name]): group for dataset in datasets for group in dataset.groups}
        if len(kinds) > 1:
            (one, first), (other, second) = list(kinds.items())[:2]
            raise UserError(
                f"data: the column {name} is {one} in {first.url} and {other} in {second.url}; it must be of one type"
            )


def class_names(datasets: Sequence[Dataset], column: str = "label") -> list[str]:
    """Return the sorted labels that occur; "", "-1" and null are no label."""
    return list(class_shares(datasets, [1.0] * len(datasets), column))


def class_shares(datasets: Sequence[Dataset], weights: Sequence[float], column: str = "label") -> dict[str, float]:
    """Return the sorted labels that occur, each with its share of the samples of a mixture; no label is no key."""
    shares: dict[str, float] = {}
    for dataset, weight in zip(datasets, weights, strict=True):
        for group in dataset.groups:
            for entry in read_group(group, [column], [column])[column].value_counts().to_pylist():
                label, share = entry["values"], entry["counts"] / dataset.count * weight / sum(weights)
                if label is not None and label not in schema.NO_CLASS:
                    shares[label] = shares.get(label, 0.0) + share
    return {label: shares[label] for label in sorted(shares, key=schema.natural)}


def row_codes(datasets: Sequence[Dataset], column: str, names: Collection[str]) -> NDArray[np.int64]:
    """Return the class of every row of datasets, one after another, by a label-like column: (n,), -1 for none."""
    groups = [group for dataset in datasets for group in dataset.groups]
    return np.concatenate([codes(read_group(group, [column], [column])[column], names) for group in groups])


class GroupRows:
    """The chosen rows of a row group: small columns as `values_of` gives them, pictures as bytes on request.

    Args:
        batch: of `read_group`.
        categories: label-like columns in it, each with the names of its classes: a row has the number of its class.
    """

    def __init__(self, batch: pa.RecordBatch, categories: Mapping[str, Collection[str]] = {}) -> None:
        self.count = batch.num_rows
        self.images = batch["image"] if "image" in batch.schema.names else None
        self.several = batch[SEVERAL] if SEVERAL in batch.schema.names else None
        small = [name for name in batch.schema.names if name not in ("image", SEVERAL)]
        self.columns = {
            name: codes(batch[name], categories[name]) if name in categories else reader_of(name).values(batch[name])
            for name in small
        }
        self.sizes = self._sizes()

    def _sizes(self) -> list[tuple[int, int] | None]:
        """Return width and height of each picture; None where they are not stated."""
        both = [self.columns.get(name, [0] * self.count) for name in ("width", "height")]
        return [(int(w), int(h)) if w > 0 and h > 0 else None for w, h in zip(*both, strict=True)]

    def image(self, row: int) -> bytes:
        """Return the bytes of a picture; none where there are none."""
        return b"" if self.images is None else self.images[row].as_py() or b""

    def pictures(self, row: int) -> list[bytes]:
        """Return the bytes of the pictures of a row: of a row with one picture that one."""
        if self.several is None:
            return [self.image(row)]
        files = self.several[row].as_py() or []
        return [(file.get("bytes") if isinstance(file, dict) else file) or b"" for file in files]

    def cell(self, name: str, row: int) -> Any:
        """Return a value; None where there is no such column."""
        column = self.columns.get(name)
        return None if column is None else column[row]


def codes(labels: pa.Array, names: Collection[str]) -> NDArray[np.int64]:
    """Return the numbers of labels, (n,): the places of their names, -1 for those without one."""
    coded, numbers = labels.dictionary_encode(null_encoding="encode"), {name: n for n, name in enumerate(names)}
    of_entries = np.array([numbers.get(name, -1) for name in coded.dictionary.to_pylist()], np.int64)
    return of_entries[np.from_dlpack(coded.indices)]


class GroupReader:
    """Reads row groups and keeps the last few: rows of a shuffle window come from the same few groups.

    Args:
        columns: what is read.
        categories: as in `GroupRows`.
        keep: groups that are kept.
    """

    def __init__(self, columns: Sequence[str], categories: Mapping[str, Collection[str]], keep: int) -> None:
        self.columns, self.categories = columns, categories
        self.read = functools.lru_cache(maxsize=keep)(self._read)
        self.groups: dict[tuple[str, int], RowGroup] = {}

    def rows(self, group: RowGroup) -> GroupRows:
        """Return the chosen rows of a group."""
        self.groups[group.url, group.number] = group
        return self.read(group.url, group.number)

    def _read(self, url: str, number: int) -> GroupRows:
        return GroupRows(read_group(self.groups[url, number], self.columns, self.categories), self.categories)
