"""Near copies among pictures that fit into memory: the join, its forest, and who stands for each component."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.dedup.blocks import choose_prefix, fit_rotation, prepare, unit_rows
from granary.curation.dedup.components import ForestBuilder, connected_components, representatives
from granary.curation.dedup.join import Edges, join_blocks

Indices = NDArray[np.int64]


def stand_ins(
    vectors: ArrayLike,
    contents: Sequence[str],
    rank: ArrayLike,
    threshold: float,
    mirrored: ArrayLike | None = None,
    device: str = "cpu",
) -> Indices:
    """Return the picture that stands for each: the first by rank of its component of near copies.

    Two pictures are linked where their contents are equal, or a cosine is above the threshold; a chain of links makes
    one component.

        >>> import numpy as np
        >>> stand_ins(np.array([[1, 0], [0, 1], [1, 0.1], [0, 1]]), ["a", "b", "c", "d"], [3, 1, 0, 2], 0.9).tolist()
        [2, 1, 2, 1]

    Args:
        vectors: (n, d), of any length.
        contents: n hashes.
        rank: (n,) int, distinct; see `components.preference`.
        threshold: in [-1, 1], strict.
        mirrored: (n, d), of the mirror images: two pictures are linked too where the mirror image of one resembles
            the other.
        device: where the products are made.

    Returns:
        (n,) int64, positions.
    """
    forest, stand_in = ForestBuilder(), np.arange(len(contents))
    for edges in _links(vectors, contents, threshold, mirrored, device):
        forest.add(*edges)
    members, labels = connected_components(forest.forest())
    stand_in[members] = members[representatives(labels, np.asarray(rank)[members])]
    return stand_in


def _links(
    vectors: ArrayLike, contents: Sequence[str], threshold: float, mirrored: ArrayLike | None, device: str
) -> Iterator[Edges]:
    """Yield the edges of the graph."""
    order = np.argsort(np.asarray(contents, str), kind="stable")
    equal = np.flatnonzero(np.asarray(contents, str)[order][1:] == np.asarray(contents, str)[order][:-1])
    yield Edges(order[equal], order[equal + 1], np.ones(len(equal), np.float32))
    unit = unit_rows(vectors)
    if not len(unit):
        return
    rotation = fit_rotation(unit)
    prefix = choose_prefix(unit, rotation, threshold)
    block = prepare(unit, rotation, prefix, device=device)
    yield from join_blocks(block, None, threshold)
    if mirrored is not None:  # a picture may resemble its own mirror image: a loop is no edge of a forest
        yield from join_blocks(prepare(unit_rows(mirrored), rotation, prefix, device=device), block, threshold)
