"""Embeddings in part files: float16 on disk, float32 unit rows in memory, found by a row's global index.

The global index of a row is its position in the concatenation of all parts of its stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table


def to_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """Turn (n, d) float32 unit rows into a float16 column."""
    half = np.ascontiguousarray(vectors, dtype=np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), half.shape[1])


def from_column(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Turn a float16 column into (n, d) float32 rows of unit length; zero rows stay zero."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = len(array), array.type.list_size
    rows = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(shape)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)).astype(np.float32)
    return rows / np.where(norms == 0, 1, norms)[:, None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the rows of a stage are.

    Args:
        parts: URLs of the part files, in order.
        starts: (p + 1,) int64, global index of the first row of each part and the total.
    """

    parts: Sequence[str]
    starts: np.ndarray

    @staticmethod
    def of(run: Run, stage: str) -> Layout:
        """Return the layout of a finished stage."""
        return Layout(run.parts(stage), np.concatenate([[0], np.cumsum(run.rows(stage), dtype=np.int64)]))

    def blocks(self, rows: int) -> list[tuple[int, int]]:
        """Group consecutive parts into blocks [first part, last part) of at most `rows` rows, at least one part."""
        blocks, first = [], 0
        for part in range(1, len(self.parts) + 1):
            last = part == len(self.parts)
            if last or self.starts[part + 1] - self.starts[first] > rows:
                blocks.append((first, part))
                first = part
        return blocks

    def read(self, first: int, last: int, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield (global index of the first row, table) of each part of a range."""
        for part in range(first, last):
            yield int(self.starts[part]), read_table(self.parts[part], columns)

    def read_among(self, blocks: Sequence[Block], columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield as `read` each part of some blocks once, in order; where there are no blocks, every part."""
        for part in sorted({part for block in blocks or [(0, len(self.parts))] for part in range(*block)}):
            yield from self.read(part, part + 1, columns)

    def take(self, indices: np.ndarray, columns: list[str]) -> pa.Table:
        """Return rows by global index, in the order given, reading only the parts that hold them."""
        order = np.argsort(indices, kind="stable")
        ascending = np.asarray(indices)[order]
        tables = []
        bounds = np.searchsorted(ascending, self.starts)
        for part in map(int, np.flatnonzero(np.diff(bounds))):
            local = ascending[bounds[part] : bounds[part + 1]] - self.starts[part]
            tables.append(read_table(self.parts[part], columns).take(pa.array(local)))
        if not tables:
            return read_table(self.parts[0], columns).slice(0, 0)
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        return pa.concat_tables(tables).take(pa.array(inverse))


Block = tuple[int, int]
"""First part and the part after the last: consecutive parts of a stage."""


def load(
    layout: Layout, block: Block, alive: np.ndarray | None = None, column: str = "embedding"
) -> tuple[np.ndarray, np.ndarray]:
    """Load the embeddings of a block of parts.

    Args:
        layout: of the stage that embedded.
        block: which parts.
        alive: sorted global indices that take part; None takes every row whose status is ok.
        column: which embedding.

    Returns:
        indices: (n,) int64, global, ascending.
        vectors: (n, d) float32 unit rows.
    """
    first, last = block
    most = int(layout.starts[last] - layout.starts[first])
    indices, vectors, filled = np.empty(most, np.int64), np.empty((0, 0), np.float32), 0
    for start, table in layout.read(first, last, ["status", column]):
        local = np.flatnonzero(table["status"].to_numpy() == "ok")
        if alive is not None:
            low, high = np.searchsorted(alive, [start, start + table.num_rows])
            local = np.intersect1d(local, alive[low:high] - start, assume_unique=True)
        rows = from_column(table[column].take(pa.array(local)))
        if not len(vectors):
            vectors = np.empty((most, rows.shape[1]), np.float32)
        stop = filled + len(local)
        indices[filled:stop], vectors[filled:stop], filled = local + start, rows, stop
    return indices[:filled], vectors[:filled]
