"""k-means over a pool: training on a bounded sample, assignment by blocks, Lloyd refinement over all of it.

Source: DINOv2 (arXiv 2304.07193), section 3, "distributed k-means"; spherical k-means as in Dhillon and
Modha, Machine Learning 42, 2001.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from granary.curation.selection.search import similarities_at, top_k

SCALE = 2.0**32  # fixed-point unit of the sums: 2^31 vectors with |component| <= 1 fit into int64
BLOCK = 1 << 20  # components summed at a time


def train_kmeans(
    sample: NDArray[np.float32],
    k: int,
    seed: int,
    iterations: int = 20,
    spherical: bool = True,
    gpu: bool = False,
) -> NDArray[np.float32]:
    """Train centroids with Faiss; the result does not depend on the order of the sample.

    Args:
        sample: (n, d) float32, finite; unit rows when spherical.
        k: number of centroids wanted.
        seed: seed of the first choice of centroids.
        iterations: Lloyd iterations.
        spherical: cosine similarity and unit centroids; otherwise squared L2.
        gpu: train on all GPUs; needs a GPU build of Faiss.

    Returns:
        (min(k, distinct rows), d) float32: with no more distinct rows than k, these are the centroids.

    Raises:
        ValueError: k < 1, or the sample is empty or not finite.
    """
    sample = np.ascontiguousarray(sample, np.float32)
    if k < 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError(f"k-means needs k >= 1 and finite vectors, got k = {k} and {len(sample)} vectors")
    rows, counts = _distinct_rows(sample)
    if len(rows) <= k:
        return rows
    import faiss

    kmeans = faiss.Kmeans(
        sample.shape[1],
        k,
        niter=iterations,
        seed=seed % 2**31,
        spherical=spherical,
        gpu=gpu,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample),  # the sample is bounded already: Faiss must not draw from it
    )
    kmeans.train(np.repeat(rows, counts, axis=0))
    return np.asarray(kmeans.centroids, np.float32)


def _distinct_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    as_bytes = rows.view(np.dtype((np.void, rows.shape[1] * 4))).ravel()
    _, first, counts = np.unique(as_bytes, return_index=True, return_counts=True)
    return rows[first], counts


def assign(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32], spherical: bool = True, gpu: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Assign vectors to their nearest centroid; of equally near ones to the first.

    Args:
        vectors: (n, d) float32.
        centroids: (k, d) float32, k >= 1.
        spherical: nearest by inner product; otherwise by squared L2.
        gpu: search on the first GPU; needs a GPU build of Faiss.

    Returns:
        cells (n,) int32, -1 for a vector that is not finite, and inner products with that centroid (n,)
        float32, independent of blocks and threads (-inf where there is no cell).
    """
    vectors, centroids = np.asarray(vectors, np.float32), np.asarray(centroids, np.float32)
    numbers = np.arange(len(centroids))
    if spherical:
        similarities, cells = top_k(vectors, centroids, numbers, 1, gpu, margin=1)
        return cells[:, 0].astype(np.int32), similarities[:, 0]
    # argmin |x - c|^2 = argmax x.c - |c|^2 / 2
    halves = np.square(centroids, dtype=np.float64).sum(1).astype(np.float32) / -2
    extended = np.column_stack([vectors, np.ones(len(vectors), np.float32)])
    cell = top_k(extended, np.column_stack([centroids, halves]), numbers, 1, gpu, margin=1)[1][:, 0]
    similarities = similarities_at(vectors, centroids, np.arange(len(vectors)), cell)
    return cell.astype(np.int32), np.where(cell >= 0, similarities, np.float32(-np.inf))


class LloydSums:
    """The sums of one Lloyd iteration over a part of the pool; parts merge to the same bits in any order.

    Components are summed as int64 in units of 2^-32, and integer sums are associative. Each cell also carries
    its member farthest from the centroid (by inner product, ties by the vector's bytes), for empty cells.

    Attributes:
        sums: (k, d) int64, in units of 2^-32.
        counts: (k,) int64.
        farthest: (k, d) float32, the member with the lowest similarity.
        lowest: (k,) float32, its similarity, +inf in an empty cell.
    """

    def __init__(self, k: int, d: int) -> None:
        """Start with empty cells: k of them, in d dimensions."""
        self.sums = np.zeros((k, d), np.int64)
        self.counts = np.zeros(k, np.int64)
        self.farthest = np.zeros((k, d), np.float32)
        self.lowest = np.full(k, np.inf, np.float32)

    def add(
        self, vectors: NDArray[np.float32], cells: NDArray[np.integer], similarities: NDArray[np.float32]
    ) -> LloydSums:
        """Add vectors to their cells.

        Args:
            vectors: (n, d) float32, components in [-1, 1].
            cells: (n,) int from `assign`; below 0 is passed over.
            similarities: (n,) float32 from `assign`.

        Raises:
            ValueError: a component is beyond [-1, 1] or not finite.
        """
        step = max(1, BLOCK // vectors.shape[1])
        for start in range(0, len(vectors), step):
            part = np.arange(start, min(start + step, len(vectors)))
            part = part[cells[part] >= 0]
            part = part[np.lexsort((similarities[part], cells[part]))]
            if len(part):
                self._add_sorted(vectors[part], cells[part], similarities[part])
        return self

    def _add_sorted(
        self, vectors: NDArray[np.float32], cells: NDArray[np.integer], similarities: NDArray[np.float32]
    ) -> None:
        if not np.abs(vectors).max() <= 1.001:  # unit rows, give or take rounding
            raise ValueError("the sums of a Lloyd iteration are for vectors with components in [-1, 1]")
        present, starts = np.unique(cells, return_index=True)
        fixed = np.rint(vectors * SCALE, dtype=np.float64).astype(np.int64)
        self.sums[present] += np.add.reduceat(fixed, starts, axis=0)
        self.counts += np.bincount(cells, minlength=len(self.counts))
        tied = similarities == np.repeat(similarities[starts], np.diff(np.append(starts, len(cells))))
        for row in np.flatnonzero(tied):
            self._offer(int(cells[row]), similarities[row], vectors[row])

    def _offer(self, cell: int, similarity: np.float32, vector: NDArray[np.float32]) -> None:
        if (similarity, vector.tobytes()) < (self.lowest[cell], self.farthest[cell].tobytes()):
            self.lowest[cell], self.farthest[cell] = similarity, vector

    def merge(self, other: LloydSums) -> LloydSums:
        """Take in the sums of another part of the pool."""
        self.sums += other.sums
        self.counts += other.counts
        for cell in np.flatnonzero((other.lowest <= self.lowest) & (other.counts > 0)):
            self._offer(int(cell), other.lowest[cell], other.farthest[cell])
        return self

    def finish(self, previous: NDArray[np.float32], spherical: bool = True) -> NDArray[np.float32]:
        """Turn the sums into the next centroids.

        Each empty cell takes over the farthest member of one other cell, the largest cells giving first; one
        for which no cell has a member to give keeps its centroid.

        Args:
            previous: (k, d) float32, the centroids the vectors were assigned to.
            spherical: scale the means to unit length; a mean of zero keeps its previous centroid.

        Returns:
            (k, d) float32.
        """
        sums, counts = self._reseeded()
        means = sums / SCALE / np.maximum(counts, 1)[:, None]
        norms = np.linalg.norm(means, axis=1)
        usable = (counts > 0) & ((norms > 0) | (not spherical))
        scale = np.where(norms > 0, norms, 1) if spherical else np.ones_like(norms)
        return np.where(usable[:, None], means / scale[:, None], previous).astype(np.float32)

    def _reseeded(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sums, counts = self.sums.copy(), self.counts.copy()
        empty = np.flatnonzero(counts == 0)
        gift = np.rint(self.farthest * SCALE, dtype=np.float64).astype(np.int64)
        varied = (gift * counts[:, None] != sums).any(axis=1)  # a cell of copies has nothing to give
        donors = np.flatnonzero((counts > 1) & varied)
        donors = donors[np.argsort(-counts[donors], kind="stable")][: len(empty)]
        empty = empty[: len(donors)]
        sums[donors] -= gift[donors]
        counts[donors] -= 1
        sums[empty], counts[empty] = gift[donors], 1
        return sums, counts
