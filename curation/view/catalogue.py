"""The rows of a run that a page shows: its ledger, and beside it what shards and sources say of the same pictures."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from granary.curation.runs.facts import Facts
from granary.curation.runs.lookup import ledger_tables
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.curation.store import schema, storage

MOST_ROWS = 1_000_000  # a browser holds a few bytes of each
SHARDS = ("dataset", "data")
LINE = pa.scalar("\n", pa.large_string())  # between captions
TEXTS = pa.schema([("label", pa.string()), ("captions", pa.list_(pa.string()))])

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Catalogue:
    """The rows of a run that a page shows.

    Args:
        run: finished; its sources are those whose pictures may be read.
        facts: its run.json.
        ledger: n rows.
        total: rows of the whole ledger, n at least.
        placed: for each role with sources (n,) int64, the row in the stage of that role; -1 where it is not of it.
        in_shards: (n,) int64, the row in all shards one after the other; -1 where it is in none.
        texts: n rows of TEXTS.
    """

    run: Run
    facts: Facts
    ledger: pa.Table
    total: int
    placed: Mapping[str, Indices]
    in_shards: Indices
    texts: pa.Table

    def __len__(self) -> int:
        return int(self.ledger.num_rows)

    @staticmethod
    def of(run: Run, facts: Facts, most: int = MOST_ROWS) -> Catalogue:
        """Read the catalogue of a finished run.

        Args:
            most: rows that are read; those of the beginning of the ledger.
        """
        tables = [schema.LEDGER.empty_table(), *_first(ledger_tables(run), most)]
        ledger = pa.concat_tables(tables, promote_options="default").combine_chunks()
        roles = {role: stage_columns(run, role, ["uri", *TEXTS.names]) for role in run.sources if run.parts(role)}
        shards = pa.concat_tables([_of_shards([]), *(_of_shards(_columns(url)) for url in shard_urls(run))])
        placed = {role: places(ledger["uri"], table["uri"]) for role, table in roles.items()}
        in_shards = places(ledger["uri"], shards["uri"])
        by_id = places(ledger["id"], shards["id"])
        kept = pc.equal(ledger["status"], "kept").to_numpy(zero_copy_only=False)
        in_shards = np.where((in_shards < 0) & kept, by_id, in_shards)
        texts = _joined(len(in_shards), [(in_shards, shards), *((placed[role], roles[role]) for role in roles)])
        return Catalogue(run, facts, ledger, sum(run.rows("ledger")), placed, in_shards, texts)

    @functools.cached_property
    def searched(self) -> list[pa.ChunkedArray]:
        """The texts of each row that a search looks into, in small letters: its uri, its id, its captions."""
        captions = pc.binary_join(self.texts["captions"].cast(pa.list_(pa.large_string())), LINE)
        return [pc.utf8_lower(column) for column in (self.ledger["uri"], self.ledger["id"], captions)]

    def find(self, text: str) -> Indices:
        """Return the ascending rows (m,) whose uri, id or captions hold every word of a text, in any case."""
        hits = np.ones(len(self), bool)
        for word in pc.utf8_lower(text).as_py().split():
            columns = (pc.match_substring(column, word) for column in self.searched)
            masks = [pc.fill_null(column, False).to_numpy(zero_copy_only=False) for column in columns]
            hits &= np.logical_or.reduce(masks)
        return np.flatnonzero(hits)

    def row(self, number: int) -> dict[str, object]:
        """Return a row of the ledger with its label and captions."""
        return {**self.ledger.slice(number, 1).to_pylist()[0], **self.texts.slice(number, 1).to_pylist()[0]}


def places(wanted: pa.ChunkedArray, known: pa.ChunkedArray) -> Indices:
    """Return (n,) int64: the first place of each value among the known ones; -1 for null and what is not there."""
    return pc.fill_null(pc.index_in(wanted, known, skip_nulls=True), -1).to_numpy().astype(np.int64)


def shard_urls(run: Run) -> list[str]:
    """Return the URLs of the shards of the dataset, in order of their names."""
    names = storage.names(run.path(*SHARDS))
    return [run.path(*SHARDS, name) for name in names if name.endswith(".parquet")]


def stage_columns(run: Run, stage: str, columns: list[str]) -> pa.Table:
    """Return columns of all parts of a stage."""
    return pa.concat_tables([read_table(url, columns) for url in run.parts(stage)])


def _first(tables: Iterator[pa.Table], most: int) -> Iterator[pa.Table]:
    """Yield tables up to a number of rows."""
    for table in tables:
        yield table.slice(0, most)
        most -= min(most, table.num_rows)
        if not most:
            return


def _columns(url: str) -> list[pa.Table]:
    with storage.open_read(url) as file:
        known = pq.read_schema(file).names
    names = [name for name in ("id", "source", *TEXTS.names) if name in known]
    return [schema.named(read_table(url, names))]


def _of_shards(tables: list[pa.Table]) -> pa.Table:
    """Return uri, id, label and captions of the samples of a shard; no rows for no table."""
    wanted = pa.schema([("uri", pa.string()), ("id", pa.string()), *TEXTS])
    if not tables:
        return wanted.empty_table()
    (table,) = tables
    known = {"uri": pc.struct_field(table["source"], "uri")} if "source" in table.column_names else {}
    known |= {name: table[name] for name in table.column_names}
    nulls = {field.name: pa.nulls(table.num_rows, field.type) for field in wanted}
    return pa.table([known.get(name, nulls[name]).cast(wanted.field(name).type) for name in wanted.names], wanted)


def _joined(rows: int, columns: list[tuple[Indices, pa.Table]]) -> pa.Table:
    """Return TEXTS of each row from the first table that has the row, null where none has."""
    tables = [table.select(TEXTS.names).cast(TEXTS) for _, table in columns]
    starts = list(itertools.accumulate((table.num_rows for table in tables), initial=0))
    chosen = np.full(rows, -1, np.int64)
    for (place, _), start in zip(columns, starts, strict=False):
        chosen = np.where((chosen < 0) & (place >= 0), place + start, chosen)
    return pa.concat_tables([TEXTS.empty_table(), *tables]).take(pa.array(chosen, mask=chosen < 0))
