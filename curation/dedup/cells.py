"""A join inside cells of k-means: exact in every cell, blind to pairs that share none, linear in the pool.

Each row is a member of its `homes` nearest cells and a visitor of the next ones up to `probes`; members of a cell are
joined with its members and its visitors by the exact block join. So a pair is seen where one of the homes of either row
is among the probes of the other. With k cells this costs about (2 homes probes - homes^2) / k of the join of every
pair, and what it finds is a subset of those edges, with the same similarities.

Which cells are nearest is computed in whole numbers: unit rows and directions are rounded to multiples of 1 / SCALE, so
that every partial sum of an inner product is an integer below 2^24, which float32 holds exactly in any order and on
any device, and still does where products round their inputs to the 11 bits of TF32. The cells of a row are therefore
the same bits on every machine, whatever threads and blocks.

Inverted files with several probes: Jegou et al., IEEE PAMI 33(1), 2011, section IV. Members beside visitors, which
find more pairs for the same products, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.dedup.blocks import Block, Floats, choose_prefix, fit_rotation, prepare, unit_rows
from granary.curation.dedup.join import Edges, Indices, concatenate, join_groups
from granary.curation.dedup.reach import ROWS_PER_CELL, USUAL, Reach, cell_count, share_compared
from granary.curation.selection.clusters import train_kmeans

SCALE = 2000  # of unit rows: squares sum to 4e6 < 2^24, components have 11 bits
DIRECTIONS = 64  # leading principal directions in which cells are told apart
ROWS = 4096  # assigned at a time
ITERATIONS = 4
MOST_HOMES, MOST_PROBES = 4, 16
FEWEST_LINKS = 100  # that reaches of cells are chosen by

Cellular = NDArray[np.int32]


@dataclass(frozen=True)
class Cells:
    """Cells of unit rows.

    Args:
        directions: (d, p) float32, whole numbers: SCALE times orthonormal columns.
        centroids: (k, p) float32, whole numbers: SCALE times unit rows.
    """

    directions: Floats
    centroids: Floats

    def __len__(self) -> int:
        return len(self.centroids)


def train_cells(sample: ArrayLike, count: int, seed: int) -> Cells:
    """Train cells on a sample: k-means in its leading principal directions.

    Args:
        sample: (n, d) float32 unit rows; without any there is one cell.
        count: of cells; fewer where the sample has no more distinct rows.
        seed: of k-means.
    """
    rows = np.asarray(sample, np.float32)
    if not len(rows):
        return Cells(np.zeros((rows.shape[1], 1), np.float32), np.zeros((1, 1), np.float32))
    directions = np.rint(fit_rotation(rows)[:, :DIRECTIONS] * SCALE)
    heads = _heads(rows, directions) / np.float32(SCALE)
    centroids = train_kmeans(heads, count, seed, ITERATIONS)
    return Cells(directions, _whole(centroids))


def _whole(rows: Floats) -> Floats:
    """Scale rows to length SCALE and round them to whole numbers."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return np.rint(rows * (SCALE / np.where(norms > 0, norms, 1))[:, None]).astype(np.float32)


def _heads(rows: Floats, directions: Floats) -> Floats:
    """Project unit rows (n, d) on directions (d, p) and scale to length SCALE; (n, p) float32, whole numbers."""
    return _whole(np.rint(rows * np.float32(SCALE)) @ directions)


def nearest_cells(vectors: ArrayLike, cells: Cells, probes: int) -> Cellular:
    """Find the nearest cells of each row, nearest first, of equally near ones the first.

    Args:
        vectors: (n, d) float32 unit rows.
        cells: trained.
        probes: how many, at most as many as there are.

    Returns:
        (n, min(probes, k)) int32.
    """
    import faiss

    rows, count = np.asarray(vectors, np.float32), min(probes, len(cells))
    index = faiss.IndexFlatIP(cells.centroids.shape[1])
    index.add(cells.centroids)
    near = np.empty((len(rows), count), np.int32)
    for start in range(0, len(rows), ROWS):
        heads = _heads(rows[start : start + ROWS], cells.directions)
        products, best = index.search(heads, min(count + 1, len(cells)))
        tied = (products[:, 1:] == products[:, :-1]).any(axis=1)  # Faiss knows no order among them
        best[tied, :count] = np.argsort(-(heads[tied] @ cells.centroids.T), axis=1, kind="stable")[:, :count]
        near[start : start + ROWS] = best[:, :count]
    return near


def are_seen(left: Cellular, right: Cellular, reach: Reach) -> NDArray[np.bool_]:
    """Say of pairs whether they share a cell in which they are joined.

    Args:
        left: (m, probes) int32 from `nearest_cells`, of one row of each pair.
        right: (m, probes) int32, of the other.
        reach: of the join.
    """
    shared = left[:, : reach.probes, None] == right[:, None, : reach.probes]
    return np.asarray(shared[:, : reach.homes].any((1, 2)) | shared[:, :, : reach.homes].any((1, 2)))


def choose_reach(left: Cellular, right: Cellular, recall: float) -> Reach:
    """Choose the cheapest reach that sees a share of known links; the usual one where few links are known.

    Args:
        left: (m, probes) int32 from `nearest_cells`, of one row of each link.
        right: (m, probes) int32, of the other.
        recall: share of the links that must be seen; where none does, the farthest reach is returned.
    """
    most = left.shape[1]
    if len(left) < FEWEST_LINKS:
        return Reach(min(USUAL.homes, most), min(USUAL.probes, most))
    reaches = [Reach(homes, probes) for homes in range(1, MOST_HOMES + 1) for probes in range(homes, most + 1)]
    for reach in sorted(reaches, key=lambda reach: (reach.products, reach)):
        if are_seen(left, right, reach).mean() >= recall:
            return reach
    return Reach(min(MOST_HOMES, most), most)


def join_cells(block: Block, near: Cellular, reach: Reach, threshold: float) -> Iterator[Edges]:
    """Join the rows of a block inside every cell.

    Args:
        block: (n, d), prepared.
        near: (n, probes) int32 from `nearest_cells`; cells below 0 are left out.
        reach: of the join.
        threshold: in [-1, 1].

    Yields:
        Edges of rows of the block, cell by cell; a pair that shares several cells comes with each.
    """
    yield from join_groups(block, _groups(near[:, : reach.probes], reach.homes), threshold)


def _groups(near: Cellular, homes: int) -> Iterator[tuple[Indices, Indices]]:
    """Yield members and visitors of every cell that has a member, the cells in order."""
    rank = np.broadcast_to(np.arange(near.shape[1]) >= homes, near.shape).ravel()
    cell, row = near.ravel(), np.repeat(np.arange(len(near)), near.shape[1])
    order = np.lexsort((row, rank, cell))
    order = order[np.searchsorted(cell[order], 0) :]
    for group in np.split(order, np.flatnonzero(np.diff(cell[order])) + 1):
        members = int(np.count_nonzero(~rank[group]))
        if members:
            yield row[group[:members]], row[group[members:]]


def cell_join(
    vectors: ArrayLike,
    threshold: float,
    *,
    cells: int | None = None,
    reach: Reach = USUAL,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Indices, Floats]:
    """Find most pairs of rows with a cosine above a threshold: those that share a cell.

        >>> import numpy as np
        >>> rows = np.repeat(np.eye(4), 16, axis=0) + 0.01 * np.arange(64)[:, None] / 64
        >>> len(cell_join(rows, 0.9, cells=4, reach=Reach(1, 1))[0])  # 4 groups of 16
        480

    Args:
        vectors: (n, d), any real type and length of rows: they are scaled to length one first.
        threshold: in [-1, 1], strict.
        cells: of k-means; by default `cell_count(n)`.
        reach: of the join.
        seed: of the training sample and of k-means.
        device: where the products are made: "cpu", "cuda", "cuda:N".

    Returns:
        pairs (m, 2) int64, i < j, in lexicographic order, and their similarities (m,) float32, as of
        `granary.curation.dedup.join.threshold_join`, of which they are a subset.

    Raises:
        ValueError: rows are not finite, or the threshold is out of range.
    """
    unit = unit_rows(vectors)
    if 0 in unit.shape:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    count = cells or cell_count(len(unit))
    drawn = np.random.default_rng(seed).choice(len(unit), min(len(unit), ROWS_PER_CELL * count), replace=False)
    trained = train_cells(unit[np.sort(drawn)], count, seed)
    rotation = fit_rotation(unit)
    prefix = choose_prefix(unit, rotation, threshold, rows=ROWS, compared=share_compared(len(trained), reach))
    block = prepare(unit, rotation, prefix, device=device)
    near = nearest_cells(unit, trained, reach.probes)
    return distinct_pairs(concatenate(join_cells(block, near, reach, threshold)))


def distinct_pairs(edges: Edges) -> tuple[Indices, Floats]:
    """Return pairs (m, 2) int64, i < j, in lexicographic order without repetitions, and their similarities (m,)."""
    pairs = np.stack([np.minimum(edges.i, edges.j), np.maximum(edges.i, edges.j)], axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return pairs, edges.similarity[first]
