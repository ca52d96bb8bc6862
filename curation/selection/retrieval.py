"""Retrieve pool images by seed images, in the two modes of DINOv2.

Sample mode takes the k pool images nearest to every seed; cluster mode draws from the k-means cells that hold
more than `min_seeds` seeds. Source: Oquab et al. (arXiv 2304.07193), section 3 and Table 15.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.store.sampling import StratifiedSample, bounded_sample


@dataclass(frozen=True)
class Retrieved:
    """What the seeds retrieved in sample mode, one row per pool image.

    Attributes:
        images: (m,) int64, distinct pool indices, ascending.
        starts: (m + 1,) int64; the seeds of images[i] are seeds[starts[i]:starts[i + 1]].
        seeds: (r,) int64, seed indices, best first within an image, ties by seed.
        similarities: (r,) float32, beside `seeds`.
        retrievals: how often an image was retrieved before the cap; k per seed when the pool has k.
        distinct: how many different images were retrieved before the cap.
    """

    images: NDArray[np.int64]
    starts: NDArray[np.int64]
    seeds: NDArray[np.int64]
    similarities: NDArray[np.float32]
    retrievals: int
    distinct: int


def sample_retrieval(
    similarities: NDArray[np.float32], indices: NDArray[np.int64], seed_indices: ArrayLike | None = None
) -> Retrieved:
    """Turn the k nearest images of every seed into the seeds of every image.

    Args:
        similarities: (q, k) float32 from `search.top_k` or `search.merge_top_k`.
        indices: (q, k) int64 beside it, -1 where the pool has no more.
        seed_indices: (q,) int64, what to call the seeds; 0 to q - 1 when not given.

    Returns:
        The seeds of every image retrieved.
    """
    rows, slots = np.nonzero(indices >= 0)
    seeds = np.arange(len(indices)) if seed_indices is None else np.asarray(seed_indices, np.int64)
    pair_images, pair_seeds, values = indices[rows, slots], seeds[rows], similarities[rows, slots]
    order = np.lexsort((pair_seeds, -values, pair_images))
    images, starts = np.unique(pair_images[order], return_index=True)
    starts = np.append(starts, len(order)).astype(np.int64)
    return Retrieved(images, starts, pair_seeds[order], values[order], len(order), len(images))


def capped(retrieved: Retrieved, pool_ids: ArrayLike, cap: int, seed: int) -> Retrieved:
    """Keep at most `cap` images of a seed set, each with all its seeds, and both counts as they were.

    The images are a bounded sample: a set keeps its shape under a cap, where a cut by similarity would keep
    the copies of the seeds.

    Args:
        retrieved: from `sample_retrieval`.
        pool_ids: (m,) str, ids of `retrieved.images`.
        cap: most images to keep.
        seed: seed of the run.
    """
    kept = np.zeros(len(retrieved.images), bool)
    kept[bounded_sample(pool_ids, cap, seed, "retrieval cap")] = True
    lengths = np.diff(retrieved.starts)
    members = np.repeat(kept, lengths)
    return replace(
        retrieved,
        images=retrieved.images[kept],
        starts=np.concatenate([[0], np.cumsum(lengths[kept])]),
        seeds=retrieved.seeds[members],
        similarities=retrieved.similarities[members],
    )


@dataclass(frozen=True)
class ClusterRetrieved:
    """What a seed set drew in cluster mode, one row per pool image.

    Attributes:
        images: (m,) int64, pool indices, ascending.
        cells: (m,) int64, cell each image was drawn from.
        seeds_in_cell: (m,) int64, number of seeds in that cell.
        retrievals: number of images drawn before the cap.
    """

    images: NDArray[np.int64]
    cells: NDArray[np.int64]
    seeds_in_cell: NDArray[np.int64]
    retrievals: int


class ClusterDraw:
    """Draw images from the cells a seed set favours, from blocks of the pool in any order.

    Cells with more than `min_seeds` seeds give up to `per_cell` images each; of all these up to `cap` stay.
    Both draws are uniform, by two different hashes. Draws with the same seed take the same images of a
    shared cell: give each seed set its own seed to draw them independently.
    """

    def __init__(
        self, seed_cells: ArrayLike, k: int, min_seeds: int = 3, per_cell: int = 10_000, seed: int = 0
    ) -> None:
        """Count the seeds of every cell.

        Args:
            seed_cells: (s,) int, cell of each seed; below 0 is no cell.
            k: number of cells.
            min_seeds: a cell needs strictly more seeds than this.
            per_cell: most images drawn from one cell.
            seed: seed of the run.
        """
        seed_cells = np.asarray(seed_cells, np.int64)
        self.seed_counts = np.bincount(seed_cells[seed_cells >= 0], minlength=k).astype(np.int64)
        limits = np.where(self.seed_counts > min_seeds, per_cell, 0)
        self.drawn = StratifiedSample(limits, seed, "cluster draw")

    def add(self, pool_cells: ArrayLike, pool_ids: ArrayLike, pool_indices: ArrayLike) -> ClusterDraw:
        """Add a block of the pool: (n,) cells, ids and pool indices."""
        self.drawn.add(pool_cells, pool_ids, pool_indices)
        return self

    def finish(self, cap: int = 1_000_000) -> ClusterRetrieved:
        """Apply the cap of the seed set and return what it draws."""
        drawn = self.drawn
        kept = np.arange(len(drawn.ids))
        if len(kept) > cap:
            kept = bounded_sample(drawn.ids, cap, drawn.seed, "cluster cap")
        kept = kept[np.argsort(drawn.indices[kept])]
        cells = drawn.cells[kept]
        return ClusterRetrieved(drawn.indices[kept], cells, self.seed_counts[cells], len(drawn.ids))
