"""SemDeDup: thin the semantic duplicates of a k-means cell.

Source: Abbas et al. (arXiv 2303.09540), section 3. An item goes when an item before it in the cell's order is
more similar than 1 - epsilon, whether or not that earlier item itself goes. This is not the joining of
connected components: a chain may leave several survivors, and which ones depends on the order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.selection.search import paired_similarity, rounding_bound, similarities_at
from granary.curation.store.sampling import priority

Keep = Literal["hard", "easy", "random"]


def semdedup(
    vectors: NDArray[np.float32],
    ids: ArrayLike,
    centroid: NDArray[np.float32],
    epsilon: float,
    keep: Keep = "hard",
    seed: int = 0,
    tile: int = 2048,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Decide which members of one cell stay; a larger epsilon removes more.

    Args:
        vectors: (n, d) float32, unit rows.
        ids: (n,) str, distinct.
        centroid: (d,) float32, of the cell.
        epsilon: an item goes when its cosine with an earlier item is above 1 - epsilon.
        keep: the order, see `scan_order`.
        seed: seed of the run, for the random order.
        tile: rows compared at a time; changes memory and speed only.

    Returns:
        keep (n,) bool and `earlier_similarity` (n,) float32, from which any other epsilon follows.
    """
    order = scan_order(vectors, ids, centroid, keep, seed)
    highest = np.empty(len(order), np.float32)
    highest[order] = earlier_similarity(vectors[order], tile)
    return stays(highest, epsilon), highest


def stays(highest: NDArray[np.float32], epsilon: float) -> NDArray[np.bool_]:
    """Say which items an epsilon keeps, from (n,) `earlier_similarity`."""
    return highest.astype(np.float64) <= 1.0 - epsilon


def scan_order(
    vectors: NDArray[np.float32], ids: ArrayLike, centroid: NDArray[np.float32], keep: Keep, seed: int = 0
) -> NDArray[np.int64]:
    """Order a cell so that what shall survive comes first; ties by id.

    Args:
        vectors: (n, d) float32, unit rows.
        ids: (n,) str, distinct.
        centroid: (d,) float32.
        keep: "hard", farthest from the centroid first; "easy", nearest first; "random", by hash of the id.
        seed: seed of the run, for the random order.

    Returns:
        (n,) int64, positions.

    Raises:
        ValueError: keep is another word.
    """
    names = np.asarray(ids).astype(str)
    if keep == "random":
        return np.lexsort((names, priority(seed, names, "semdedup")))
    if keep not in ("hard", "easy"):
        raise ValueError(f"keep is {keep!r}, it can be hard, easy or random")
    nearness = paired_similarity(vectors, np.broadcast_to(centroid, vectors.shape))
    return np.lexsort((names, nearness if keep == "hard" else -nearness))


def earlier_similarity(vectors: NDArray[np.float32], tile: int = 2048) -> NDArray[np.float32]:
    """Compute M_j = max over i < j of x_i . x_j; the first item has -inf.

    Tiles of float32 products find the pairs that rounding leaves in question; these are re-scored by
    `paired_similarity`, so that the values do not depend on the tiles.

    Args:
        vectors: (n, d) float32 in scan order.
        tile: rows and columns of one tile.

    Returns:
        (n,) float32.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    slack = 2 * rounding_bound(vectors, vectors)
    highest = np.full(len(vectors), -np.inf, np.float32)
    tiles = [slice(start, start + tile) for start in range(0, len(vectors), tile)]
    for number, later in enumerate(tiles):
        for earlier in tiles[: number + 1]:
            _raise_highest(highest, vectors, later, earlier, slack)
    return highest


def _raise_highest(
    highest: NDArray[np.float32],
    vectors: NDArray[np.float32],
    later: slice,
    earlier: slice,
    slack: NDArray[np.float32],
) -> None:
    rough = vectors[later] @ vectors[earlier].T
    if later == earlier:
        rough[np.triu_indices(len(rough))] = -np.inf
    best = np.maximum(highest[later], rough.max(axis=1))
    rows, columns = np.nonzero((rough >= (best - slack[later])[:, None]) & np.isfinite(rough))
    rows, columns = rows + later.start, columns + earlier.start
    np.maximum.at(highest, rows, similarities_at(vectors, vectors, rows, columns))
