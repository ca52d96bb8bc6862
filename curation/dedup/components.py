"""Components of a graph whose edges arrive in pieces: mergeable spanning forests, representatives, splitting.

A graph is kept as its maximum spanning forest under the total order (similarity descending, then i, then j).
Under a total order that forest is unique, so it is a function of the set of edges: split in any way, merged
in any order, they give the same bytes, as msf(A u B) = msf(msf(A) u msf(B)). It has at most one edge less
than vertices, and its edges above a higher threshold connect what all edges above that threshold connect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # scipy costs a fifth of a second that a command without work should not take
    from scipy.sparse import csr_array

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Similarity = Callable[[Indices, Indices], Floats]


@dataclass(frozen=True)
class Forest:
    """A maximum spanning forest: i < j (m,) int64, similarity (m,) float32, by (-similarity, i, j)."""

    i: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    j: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    similarity: Floats = field(default_factory=lambda: np.empty(0, np.float32))

    def __len__(self) -> int:
        return len(self.i)

    def above(self, threshold: float) -> Forest:
        """Return the forest of the graph whose edges are those with a similarity above `threshold`."""
        kept = int(np.count_nonzero(self.similarity > np.float32(threshold)))
        return Forest(self.i[:kept], self.j[:kept], self.similarity[:kept])


def spanning_forest(i: ArrayLike, j: ArrayLike, similarity: ArrayLike) -> Forest:
    """Return the maximum spanning forest of a graph.

    Args:
        i: (m,) int64, one end of each edge: any ids, in any order and direction. Loops and repeated edges are allowed;
            of a repeated edge the highest similarity counts.
        j: (m,) int64, the other end.
        similarity: (m,) float32.

    Raises:
        ValueError: a similarity is NaN.
    """
    first, second = np.asarray(i, np.int64), np.asarray(j, np.int64)
    weight = np.asarray(similarity, np.float32) + np.float32(0)  # no negative zero
    if np.isnan(weight).any():
        raise ValueError("a similarity is NaN")
    i, j, weight = _kruskal_order(np.minimum(first, second), np.maximum(first, second), weight)
    vertices, ends = np.unique(np.concatenate([i, j]), return_inverse=True)
    rank = np.arange(1, len(i) + 1, dtype=np.float64)
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    graph = csr_array((rank, (ends[: len(i)], ends[len(i) :])), shape=(len(vertices),) * 2)
    kept = np.sort(minimum_spanning_tree(graph).data).astype(np.int64) - 1
    return Forest(i[kept], j[kept], weight[kept])


def _kruskal_order(i: Indices, j: Indices, similarity: Floats) -> tuple[Indices, Indices, Floats]:
    """Sort edges with i <= j by (-similarity, i, j), without loops and repetitions."""
    order = np.lexsort((-similarity, j, i))
    order = order[i[order] < j[order]]
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(i[order]) != 0) | (np.diff(j[order]) != 0)
    order = order[new]
    order = order[np.argsort(-similarity[order], kind="stable")]
    return i[order], j[order], similarity[order]


def merge_forests(forests: Iterable[Forest]) -> Forest:
    """Return the forest of the union of the graphs; associative, commutative and idempotent."""
    parts = [Forest(), *forests]
    columns = ([getattr(part, name) for part in parts] for name in ("i", "j", "similarity"))
    return spanning_forest(*(np.concatenate(column) for column in columns))


class ForestBuilder:
    """Collects edges into a forest, contracting whenever more than `limit` wait.

    Memory is bounded by the vertices and the limit, not by the edges: ten thousand copies of one image, fifty
    million edges, cost 9,999.
    """

    def __init__(self, limit: int = 1 << 20):
        self.limit = limit
        self._forest = Forest()
        self._waiting: list[Forest] = []
        self._count = 0

    def add(self, i: ArrayLike, j: ArrayLike, similarity: ArrayLike) -> None:
        """Add edges: i, j (m,) int64 and similarity (m,) float32."""
        edges = Forest(np.asarray(i, np.int64), np.asarray(j, np.int64), np.asarray(similarity, np.float32))
        self._waiting.append(edges)
        self._count += len(edges)
        if self._count > max(self.limit, len(self._forest)):
            self.forest()

    def forest(self) -> Forest:
        """Return the forest of all edges added so far."""
        if self._waiting:
            self._forest = merge_forests([self._forest, *self._waiting])
            self._waiting, self._count = [], 0
        return self._forest


def connected_components(forest: Forest) -> tuple[Indices, Indices]:
    """Label the vertices that have an edge by the smallest vertex of their component.

        >>> import numpy as np
        >>> forest = spanning_forest(np.array([1, 1, 7]), np.array([4, 9, 8]), np.array([0.9, 0.8, 0.95], np.float32))
        >>> [column.tolist() for column in connected_components(forest)]
        [[1, 4, 7, 8, 9], [1, 1, 7, 7, 1]]

    Args:
        forest: the edges.

    Returns:
        vertices (v,) int64, ascending, and labels (v,) int64.
    """
    from scipy.sparse.csgraph import connected_components as label_components

    vertices, graph = _graph(forest)
    component = label_components(graph, directed=False)[1]
    smallest = np.unique(component, return_index=True)[1]  # vertices ascend: the first of a component
    return vertices, vertices[smallest][component]


def _graph(forest: Forest) -> tuple[Indices, csr_array]:
    from scipy.sparse import csr_array

    vertices, ends = np.unique(np.concatenate([forest.i, forest.j]), return_inverse=True)
    i, j = ends[: len(forest)], ends[len(forest) :]
    return vertices, csr_array((np.ones(len(forest)), (i, j)), shape=(len(vertices),) * 2)


def separated(forest: Forest, pairs: ArrayLike) -> Forest:
    """Return a forest without the weakest edges that join what must be apart.

    Edges are taken in the order of the forest (Kruskal); one that would join the two of a pair, over whatever way, is
    left out. So no pair is in one component, every edge left out would join one, and of the edges on a way between
    two it is the weakest that goes.

        >>> import numpy as np
        >>> chain = spanning_forest([1, 2, 3], [2, 3, 4], np.array([0.9, 0.7, 0.8], np.float32))
        >>> separated(chain, [(1, 4)]).i.tolist()
        [1, 3]

    Args:
        forest: the edges.
        pairs: (m, 2) int64, in any order; vertices without an edge are apart anyway.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    vertices, labels = connected_components(forest)
    inside = np.isin(pairs, vertices).all(axis=1)
    first, second = (labels[np.searchsorted(vertices, side)] for side in pairs[inside].T)
    joined, crowded = pairs[inside][first == second], first[first == second]
    mine = np.isin(labels[np.searchsorted(vertices, forest.i)], crowded)
    kept = ~mine
    kept[mine] = _taken(forest.i[mine].tolist(), forest.j[mine].tolist(), joined.tolist())
    return Forest(forest.i[kept], forest.j[kept], forest.similarity[kept])


def _taken(i: Sequence[int], j: Sequence[int], pairs: Sequence[tuple[int, int]]) -> list[bool]:
    """Say of each edge, in order, whether it joins two sets that no pair keeps apart."""
    parent: dict[int, int] = {}
    foes: dict[int, list[int]] = {}  # of the root of a set: what must not come into it
    for one, other in pairs:
        foes.setdefault(one, []).append(other)
        foes.setdefault(other, []).append(one)

    def root(vertex: int) -> int:
        while (above := parent.get(vertex, vertex)) != vertex:
            parent[vertex] = parent.get(above, above)
            vertex = above
        return vertex

    taken = []
    for left, right in zip(map(root, i), j, strict=True):
        right = root(right)
        small, large = sorted((left, right), key=lambda vertex: len(foes.get(vertex, ())))
        apart = any(root(foe) == large for foe in foes.get(small, ()))
        taken.append(not apart)
        if not apart:
            parent[small] = large
            foes.setdefault(large, []).extend(foes.pop(small, ()))
    return taken


def preference(pixels: ArrayLike, ids: Sequence[str], uris: Sequence[str]) -> Indices:
    """Rank images by the total order of representatives: most pixels, then smallest id, then smallest uri.

    Args:
        pixels: (n,) int64.
        ids: (n,) str.
        uris: (n,) str, distinct.

    Returns:
        (n,) int64, 0 for the best.
    """
    order = np.lexsort((np.asarray(uris, str), np.asarray(ids, str), -np.asarray(pixels, np.int64)))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def representatives(labels: ArrayLike, rank: ArrayLike) -> Indices:
    """Return the representative of every member's component: the position of its member of lowest rank.

    Args:
        labels: (n,) component of each member.
        rank: (n,) int64 from `preference`, distinct.

    Returns:
        (n,) int64.
    """
    order = np.lexsort((np.asarray(rank), np.asarray(labels)))
    _, first, component = np.unique(np.asarray(labels)[order], return_index=True, return_inverse=True)
    best = np.empty(len(order), np.int64)
    best[order] = order[first[component]]
    return best


def split_by_similarity(labels: ArrayLike, rank: ArrayLike, similarity: Similarity, bound: float) -> Indices:
    """Split components that chain, so that every member is within a bound of its representative.

    In every component the best of the members left, by rank, becomes a representative and takes all members
    left with a similarity to it of at least `bound`; again until none is left.

    Args:
        labels: (n,) component of each member.
        rank: (n,) int64 from `preference`, distinct.
        similarity: gives that of positions i and j, (m,) and (m,) int64, as (m,) float32.
        bound: least similarity of a member to its representative.

    Returns:
        (n,) int64, the position of each member's representative.
    """
    labels, rank = np.asarray(labels), np.asarray(rank)
    result = np.arange(len(labels), dtype=np.int64)
    left = result.copy()
    while len(left):
        head = left[representatives(labels[left], rank[left])]
        taken = head == left
        others = np.flatnonzero(~taken)
        taken[others] = similarity(left[others], head[others]) >= np.float32(bound)
        result[left[taken]] = head[taken]
        left = left[~taken]
    return result


def tightness(representative: ArrayLike, similarity: Similarity) -> tuple[Indices, Floats]:
    """Return the lowest similarity of a member to its representative, for every representative.

    Args:
        representative: (n,) int64, positions, from `representatives` or `split_by_similarity`.
        similarity: as in `split_by_similarity`.

    Returns:
        representatives: (c,) int64, ascending.
        lowest: (c,) float32, 1 for one alone.
    """
    representative = np.asarray(representative, np.int64)
    heads, component = np.unique(representative, return_inverse=True)
    lowest = np.ones(len(heads), np.float32)
    others = np.flatnonzero(representative != np.arange(len(representative)))
    np.minimum.at(lowest, component[others], similarity(others, representative[others]))
    return heads, lowest
