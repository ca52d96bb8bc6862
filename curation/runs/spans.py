"""Dense tables that say something of every row of the pool: files of some parts each, a row group for every part."""

from __future__ import annotations

import dataclasses

import pyarrow as pa

from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Block

PARTS_PER_FILE = 256  # so that no footer grows with the pool


@dataclasses.dataclass(frozen=True)
class Span:
    """The job of a unit that writes one file of a dense table.

    Args:
        parts: of the pool, first and the one after the last.
    """

    parts: Block


def spans(parts: int) -> list[Block]:
    """Return the parts of each file, of a pool of so many parts; a pool without any has one file."""
    starts = range(0, max(1, parts), PARTS_PER_FILE)
    return [(start, min(start + PARTS_PER_FILE, parts)) for start in starts]


def read_part(run: Run, stage: str, part: int, columns: list[str] | None = None) -> pa.Table:
    """Read what a dense table says of a part of the pool."""
    return read_table(run.parts(stage)[part // PARTS_PER_FILE], columns, group=part % PARTS_PER_FILE)
