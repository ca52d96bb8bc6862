"""A forest whose pairs must be apart: against a slow Kruskal that asks every component before each edge."""

from __future__ import annotations

import numpy as np
import pytest

from granary.curation.dedup.components import Forest, connected_components, separated, spanning_forest


def naive(forest: Forest, pairs: np.ndarray) -> list[tuple[int, int]]:
    """Take edges one by one, each only if no pair is then in one component."""
    taken: list[tuple[int, int]] = []
    for edge in zip(forest.i.tolist(), forest.j.tolist(), strict=True):
        sets = {v: {v} for v in [*forest.i.tolist(), *forest.j.tolist(), *pairs.ravel().tolist()]}
        for a, b in [*taken, edge]:
            whole = sets[a] | sets[b]
            for vertex in whole:
                sets[vertex] = whole
        if not any(b in sets[a] for a, b in pairs.tolist()):
            taken.append(edge)
    return taken


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_a_slow_kruskal_takes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 40))
    i, j = rng.integers(0, n, (2, 3 * n))
    forest = spanning_forest(i, j, rng.uniform(0.5, 1, 3 * n).astype(np.float32))
    pairs = rng.integers(0, n + 3, (int(rng.integers(1, 8)), 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    cut = separated(forest, pairs)
    assert list(zip(cut.i.tolist(), cut.j.tolist(), strict=True)) == naive(forest, pairs)
    vertices, labels = connected_components(cut)
    label = dict(zip(vertices.tolist(), labels.tolist(), strict=True))
    assert not any(label.get(a, -1 - a) == label.get(b, -1 - b) for a, b in pairs.tolist())
    again = separated(forest, pairs[::-1, ::-1])
    assert again.i.tolist() == cut.i.tolist()


def test_nothing_asked_cuts_nothing() -> None:
    forest = spanning_forest([0, 1], [1, 2], np.array([0.9, 0.8], np.float32))
    for pairs in (np.empty((0, 2), np.int64), [(5, 6)], [(0, 9)]):
        assert len(separated(forest, pairs)) == 2
    assert len(separated(Forest(), [(0, 1)])) == 0
