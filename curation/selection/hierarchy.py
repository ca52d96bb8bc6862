"""Hierarchical k-means with resampling, and sampling balanced over its tree.

Source: Vo et al., "Automatic Data Curation for Self-Supervised Learning" (arXiv 2405.15613), sections 3.2 to
3.4. Plain k-means puts centroids where the data are dense; clustering the centroids again, after resampling,
spreads them evenly over the support, and a budget shared from the top down follows them.

Only the lowest level touches the pool, so it may be made elsewhere (`selection.clusters`): the hierarchy is then fitted
on its centroids, `allocate` gives each cell a budget, and `StratifiedSample(budgets)` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.selection.clusters import assign
from granary.curation.store.sampling import bounded_sample, rank_in_group


@dataclass(frozen=True)
class Level:
    """One level of the tree.

    Attributes:
        centroids: (k, d) float32.
        parents: (n,) int64, the cell in [0, k) of each item of the level below.
    """

    centroids: NDArray[np.float32]
    parents: NDArray[np.int64]


def fit_hierarchy(
    points: NDArray[np.float32],
    sizes: Sequence[int],
    resamples: int = 10,
    seed: int = 0,
    *,
    nearest: Sequence[int] | None = None,
    iterations: int = 50,
) -> list[Level]:
    """Cluster points, then the centroids, level by level, under squared L2.

    After the k-means of a level, `resamples` times: take the points nearest each centroid, run k-means on
    them alone, assign all points of the level anew. Seeding a level costs O(n k d) and is not distributed.

    Args:
        points: (n, d) float32, finite: vectors, or the centroids of a level made elsewhere.
        sizes: number of cells of each level, from the lowest up; a level has no more cells than items.
        resamples: rounds of resampling.
        seed: seed of the choice of first centroids.
        nearest: how many points each cell gives to a resample, for each level; a level with 1 or less is not
            resampled. Half the mean cell size when not given.
        iterations: most Lloyd iterations of one k-means.

    Returns:
        The levels, from the lowest up; none without points.

    Raises:
        ValueError: a level without cells, points that are not finite, or `nearest` of another length.
    """
    if min(sizes, default=1) < 1:
        raise ValueError(f"a level needs 1 cell or more, got {list(sizes)}")
    if not len(points):
        return []
    counts = [len(points), *sizes]
    if nearest is None:
        nearest = [before // (2 * after) for before, after in pairwise(counts)]
    levels: list[Level] = []
    for number, (k, s) in enumerate(zip(sizes, nearest, strict=True)):
        points = levels[-1].centroids if levels else np.asarray(points, np.float32)
        rounds = resamples if s > 1 else 0
        levels.append(_fit_level(points, k, s, rounds, iterations, seed + 1000 * number))
    return levels


def _fit_level(points: NDArray[np.float32], k: int, s: int, rounds: int, iterations: int, seed: int) -> Level:
    centroids = _kmeans(points, k, iterations, seed)
    for step in range(1, rounds + 1):
        resample = _nearest_members(points, centroids, s)
        centroids = _kmeans(points[resample], k, iterations, seed + step)
    return Level(centroids, assign(points, centroids, spherical=False)[0].astype(np.int64))


def _nearest_members(points: NDArray[np.float32], centroids: NDArray[np.float32], s: int) -> NDArray[np.int64]:
    cells = assign(points, centroids, spherical=False)[0]
    order = np.lexsort((squared_distance(points, centroids[cells]), cells))
    return np.sort(order[rank_in_group(cells[order]) < s])


def squared_distance(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared L2 distance of row i to row i: (n, d) float32 twice to (n,) float64."""
    return np.square(np.subtract(left, right, dtype=np.float64)).sum(axis=1)


def _kmeans(points: NDArray[np.float32], k: int, iterations: int, seed: int) -> NDArray[np.float32]:
    from sklearn.cluster import kmeans_plusplus

    k = min(k, len(points))
    trials = 2 + int(np.log(k))
    first, _ = kmeans_plusplus(points.astype(np.float64), k, random_state=seed % 2**32, n_local_trials=trials)
    centroids = first.astype(np.float32)
    for _ in range(iterations):
        moved = _cell_means(points, assign(points, centroids, spherical=False)[0], centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _cell_means(
    points: NDArray[np.float32], cells: NDArray[np.int32], previous: NDArray[np.float32]
) -> NDArray[np.float32]:
    order = np.argsort(cells, kind="stable")
    present, starts, counts = np.unique(cells[order], return_index=True, return_counts=True)
    means = previous.copy()
    means[present] = np.add.reduceat(points[order].astype(np.float64), starts, axis=0) / counts[:, None]
    return means


def water_level(sizes: ArrayLike, target: int) -> int:
    """Return the largest integer L with sum_j min(L, n_j) <= target, or the largest size if that is less.

        >>> water_level([2, 5, 100], 20)  # 2 + 5 + 13
        13

    Args:
        sizes: (m,) int64, n_j >= 0.
        target: budget to share, >= 0.
    """
    ascending = np.sort(np.asarray(sizes, np.int64))
    filled = np.cumsum(ascending) - ascending  # what the smaller children hold when they are full
    levels = (target - filled) // np.arange(len(ascending), 0, -1)
    rising = np.flatnonzero(levels < ascending)
    return int(levels[rising[0]]) if len(rising) else int(ascending.max(initial=0))


def share(sizes: ArrayLike, target: int, names: ArrayLike, seed: int, purpose: str = "") -> NDArray[np.int64]:
    """Share a budget evenly among children of unequal size, to the last one.

    Args:
        sizes: (m,) int64, the most each child can take.
        target: budget to share.
        names: (m,) what the children are called; the remainder goes to children chosen by their hash.
        seed: seed of the run.
        purpose: names the draw of the remainder.

    Returns:
        (m,) int64 with sum min(target, sum of sizes); children that are not full differ by at most 1.
    """
    sizes = np.asarray(sizes, np.int64)
    level = water_level(sizes, target)
    shares = np.minimum(sizes, level)
    above = np.flatnonzero(sizes > level)
    remainder = min(target, int(sizes.sum())) - int(shares.sum())
    if remainder:
        shares[above[bounded_sample(np.asarray(names)[above], remainder, seed, purpose)]] += 1
    return shares


def allocate(levels: Sequence[Level], leaf_sizes: ArrayLike, target: int, seed: int) -> NDArray[np.int64]:
    """Share a budget of samples from the top of the tree down to the leaves.

    A cell counts with all the samples below it, not with its direct children, so nothing is lost on the way.

    Args:
        levels: from `fit_hierarchy`, from the lowest up, above the leaves; the first has a parent per leaf.
        leaf_sizes: (n,) int64, samples in each leaf.
        target: samples wanted.
        seed: seed of the run.

    Returns:
        (n,) int64 budgets, at most leaf_sizes, with sum min(target, samples).
    """
    sizes = [np.asarray(leaf_sizes, np.int64)]
    for level in levels:
        totals = np.zeros(len(level.centroids), np.int64)
        np.add.at(totals, level.parents, sizes[-1])
        sizes.append(totals)
    budgets = share(sizes[-1], target, np.arange(len(sizes[-1])), seed, f"share {len(levels)}")
    for depth in range(len(levels) - 1, -1, -1):
        budgets = _share_among_children(levels[depth].parents, sizes[depth], budgets, seed, f"share {depth}")
    return budgets


def _share_among_children(
    parents: NDArray[np.int64],
    sizes: NDArray[np.int64],
    budgets: NDArray[np.int64],
    seed: int,
    purpose: str,
) -> NDArray[np.int64]:
    shares = np.zeros(len(parents), np.int64)
    order = np.argsort(parents, kind="stable")
    for children in np.split(order, np.flatnonzero(np.diff(parents[order])) + 1):
        if len(children):
            budget = int(budgets[parents[children[0]]])
            shares[children] = share(sizes[children], budget, children, seed, purpose)
    return shares
