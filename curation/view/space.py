"""The embeddings that a run of curate stores, for a page: what resembles a picture, and a map of all."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import from_column
from granary.curation.store.threads import limit_blas
from granary.curation.view.catalogue import Catalogue

SPACES = {"retrieval": "features", "copy": "pool"}  # by name the stage that wrote the vectors
NEAREST = 200
FITTED = 20_000  # rows that the directions of a map are fitted on
HELD_BYTES = 512 << 20  # of vectors that stay in memory; more are read again each time

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Space:
    """The vectors of one encoder.

    Args:
        catalogue: of a run of curate.
        stage: that wrote them.
    """

    def __init__(self, catalogue: Catalogue, stage: str) -> None:
        self.run, self.stage = catalogue.run, stage
        placed = catalogue.placed["pool"]
        self.rows = np.full(sum(self.run.rows("pool")), -1, np.int64)
        shown = np.flatnonzero(placed >= 0)
        self.rows[placed[shown]] = shown
        self.count = len(catalogue)

    def similar(self, row: int, most: int = NEAREST) -> tuple[Rows, Vectors]:
        """Return the rows (m,) most similar to one, itself first, and their cosines (m,) float32.

        Raises:
            UserError: the row has no vector.
        """
        query = next((vectors[rows == row][0] for rows, vectors in self.blocks() if row in rows), None)
        if query is None:
            raise UserError("similar: this picture has no vector in that space")
        return self.nearest(query, most, row)

    def nearest(self, query: Vectors, most: int = NEAREST, first: int = -1) -> tuple[Rows, Vectors]:
        """Return the rows (m,) most similar to a unit vector (d,), and their cosines (m,) float32.

        Args:
            first: a row that comes before all others.
        """
        found = [(rows, vectors @ query) for rows, vectors in self.blocks()]
        rows, cosines = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.lexsort((rows, -cosines, rows != first))[:most]
        return rows[order], cosines[order]

    @functools.cached_property
    def map(self) -> Vectors:
        """Place every row on its two principal components, (n, 2) float32; NaN where it has no vector.

        The components are fitted on at most `FITTED` rows at equal distances, by one thread, and each points where its
        largest entry is positive: the same run has the same map.
        """
        with limit_blas(1):
            total = sum(len(rows) for rows, _ in self.blocks())
            every, seen, sample = max(1, -(-total // FITTED)), 0, []
            for rows, vectors in self.blocks():
                sample.append(vectors[-seen % every :: every])
                seen += len(rows)
            places = np.full((self.count, 2), np.nan, np.float32)
            if not sample:
                return places
            mean, directions = principal(np.concatenate(sample))
            for rows, vectors in self.blocks():
                places[rows] = (vectors - mean) @ directions
        return places

    def blocks(self) -> Iterator[tuple[Rows, Vectors]]:
        """Yield rows (m,) and unit vectors (m, d) of every part."""
        yield from ((rows, from_column(column)) for rows, column in (self._held or self._read()))

    @functools.cached_property
    def _held(self) -> list[tuple[Rows, pa.Array]]:
        """All parts as float16, merged into large ones; none where they are too many."""
        held, size = [], 0
        for rows, column in self._read():
            held.append((rows, column))
            size += column.nbytes
            if size > HELD_BYTES:
                return []
        return _merged(held)

    def _read(self) -> Iterator[tuple[Rows, pa.Array]]:
        start = 0
        for url in self.run.parts(self.stage):
            index = ["index"] if self.stage == "features" else []
            table = read_table(url, ["status", "embedding", *index])
            place = table["index"].to_numpy() if index else np.arange(start, start + table.num_rows)
            start += table.num_rows
            rows = self.rows[place]
            chosen = np.flatnonzero((table["status"].to_numpy() == "ok") & (rows >= 0))
            if len(chosen):
                yield rows[chosen], table["embedding"].take(pa.array(chosen)).combine_chunks()


def _merged(parts: list[tuple[Rows, pa.Array]], size: int = 8192) -> list[tuple[Rows, pa.Array]]:
    """Return consecutive parts put together, until each has about `size` rows: a product of few rows is slow."""
    merged: list[tuple[Rows, pa.Array]] = []
    waiting: list[tuple[Rows, pa.Array]] = []
    for number, part in enumerate(parts):
        waiting.append(part)
        if number + 1 == len(parts) or sum(len(rows) for rows, _ in waiting) >= size:
            rows, columns = zip(*waiting, strict=True)
            merged.append((np.concatenate(rows), pa.concat_arrays(columns)))
            waiting = []
    return merged


def principal(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Return the mean (d,) and the two principal directions (d, 2) of vectors (n, d), float32.

    The largest entry of a direction is positive: without that its sign would be an accident.
    """
    mean = vectors.mean(axis=0, dtype=np.float64) if len(vectors) else np.zeros(vectors.shape[1])
    centred = vectors - mean
    _, directions = np.linalg.eigh(centred.T @ centred)
    directions = directions[:, ::-1][:, :2]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    directions = directions * np.where(largest < 0, -1, 1)
    if directions.shape[1] < 2:
        directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    return mean.astype(np.float32), directions.astype(np.float32)
