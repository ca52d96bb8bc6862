"""Find files of a run again: by uri, by id, for the report and for `granary explain`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from granary.curation.recipe import ROLES, CurateRecipe
from granary.curation.runs.facts import read_recipe
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.curation.sources import Reader
from granary.curation.store import storage


class Locator(TypedDict):
    """Where the bytes of a file are: its role, and the columns LOCATOR."""

    role: str
    uri: str
    source: int
    path: str
    offset: int
    size: int


LOCATOR = ["uri", "source", "path", "offset", "size"]


def open_run(url: str) -> tuple[Run, CurateRecipe]:
    """Open the directory of a curation run; raises UserError when it is not one."""
    recipe = read_recipe(url, CurateRecipe)
    return Run(url, recipe.sources), recipe


class Files:
    """The files of a run's sources, found by uri through the statistics of the part files.

    Args:
        run: a run whose roles are embedded.
        max_bytes: larger files are not read.
    """

    def __init__(self, run: Run, max_bytes: int) -> None:
        self.run, self.max_bytes = run, max_bytes

    @functools.cached_property
    def ranges(self) -> list[tuple[str, str, str, str]]:
        """(role, part URL, smallest uri, largest uri) of every row group."""
        return [(role, url, *bounds) for role in ROLES for url in self.run.parts(role) for bounds in _bounds(url)]

    def find(self, uri: str) -> Locator:
        """Return the role and the locator of a file; raises KeyError when the run has none of that uri."""
        for role, url, low, high in self.ranges:
            if low <= uri <= high:
                table = read_table(url, LOCATOR)
                for row in table.filter(pc.equal(table["uri"], uri)).to_pylist():
                    return cast(Locator, {"role": role, **row})
        raise KeyError(uri)

    def read(self, uri: str) -> bytes:
        """Return the original bytes of a file; raises KeyError or OSError."""
        row = self.find(uri)
        with Reader(self.run.sources[row["role"]][row["source"]], self.max_bytes) as reader:
            return reader.read(row["path"], row["offset"], row["size"])

    @functools.cached_property
    def _seeds(self) -> dict[str, str]:
        tables = [read_table(url, ["id", "uri"]) for url in self.run.parts("seeds")]
        return {row["id"]: row["uri"] for table in reversed(tables) for row in reversed(table.to_pylist())}

    def seed_uri(self, identity: str) -> str | None:
        """Return the uri of a seed by its id."""
        return self._seeds.get(identity)


def _bounds(url: str) -> Iterator[tuple[str, str]]:
    with storage.open_read(url) as file:
        metadata = pq.ParquetFile(file).metadata
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(0).statistics
            if statistics is not None and statistics.has_min_max:
                yield statistics.min, statistics.max


def ledger_tables(run: Run, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the ledger, a part at a time."""
    for url in run.parts("ledger"):
        yield read_table(url, columns)
