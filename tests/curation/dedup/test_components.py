"""Forests against Kruskal, scipy and networkx; the laws of merging; the traps of the curation sheet."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components as scipy_components

from granary.curation.dedup.blocks import unit_rows
from granary.curation.dedup.components import (
    Forest,
    ForestBuilder,
    connected_components,
    merge_forests,
    preference,
    representatives,
    spanning_forest,
    split_by_similarity,
    tightness,
)
from granary.curation.dedup.join import pair_similarities, threshold_join


def random_graph(seed):
    """Edges with ties, loops, repetitions and both directions, among ids that leave gaps."""
    rng = np.random.default_rng(seed)
    vertices = rng.choice(10**12, rng.integers(2, 60), replace=False)
    m = rng.integers(0, 120)
    i, j = rng.choice(vertices, (2, m))
    similarity = rng.choice(np.float32([0.5, 0.7, 0.70000005, 0.9, 1, -0.0, 0.0]), m)
    again = rng.integers(0, max(m, 1), m // 3)
    return (
        np.concatenate([i, j[again]]),
        np.concatenate([j, i[again]]),
        np.concatenate([similarity, similarity[again[::-1]]]),
    )


def same(a, b):
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("i", "j", "similarity"))


def kruskal(i, j, similarity):
    """The maximum spanning forest with a loop over sorted edges and a dictionary of parents."""
    parent: dict[int, int] = {}

    def find(x):
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    rows = zip(i.tolist(), j.tolist(), similarity.tolist(), strict=True)
    edges = {(-s, min(a, b), max(a, b)) for a, b, s in rows}
    kept = []
    for s, a, b in sorted(edges):
        if find(a) != find(b):
            parent[find(a)] = find(b)
            kept.append((a, b, -s))
    return kept


def partition(vertices, labels):
    groups: dict[int, set[int]] = {}
    for vertex, label in zip(vertices, labels, strict=True):
        groups.setdefault(int(label), set()).add(int(vertex))
    return {frozenset(group) for group in groups.values()}


@pytest.mark.parametrize("block", range(4))
def test_forest_and_components_on_random_graphs(block):
    for seed in range(50 * block, 50 * block + 50):
        i, j, similarity = random_graph(seed)
        forest = spanning_forest(i, j, similarity)
        found = list(zip(forest.i.tolist(), forest.j.tolist(), forest.similarity.tolist(), strict=True))
        assert found == kruskal(i, j, similarity)
        vertices, labels = connected_components(forest)
        assert vertices.tolist() == sorted(set(i[i != j].tolist()) | set(j[i != j].tolist()))
        graph = networkx.Graph(zip(i.tolist(), j.tolist(), strict=True))
        expected = {frozenset(group) for group in networkx.connected_components(graph) if len(group) > 1}
        assert partition(vertices, labels) == expected
        for group in expected:
            assert set(labels[np.isin(vertices, list(group))].tolist()) == {min(group)}


def test_components_equal_those_of_scipy_with_isolated_vertices():
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 3000, (2, 1800))
    vertices, labels = connected_components(spanning_forest(i, j, rng.random(1800, np.float32)))
    all_labels = np.arange(3000)
    all_labels[vertices] = labels
    expected = scipy_components(coo_array((np.ones(1800), (i, j)), shape=(3000, 3000)), directed=False)[1]
    assert partition(range(3000), all_labels) == partition(range(3000), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 4), min_size=200, max_size=200), st.randoms())
def test_any_split_and_any_order_give_the_same_forest(seed, part, random):
    i, j, similarity = random_graph(seed)
    whole = spanning_forest(i, j, similarity)
    order = list(range(len(i)))
    random.shuffle(order)
    parts = [[k for k in order if part[k % 200] == p] for p in range(5)]
    forests = [spanning_forest(j[p], i[p], similarity[p]) for p in parts]
    random.shuffle(forests)
    a, b, c, *rest = forests
    assert same(merge_forests([merge_forests([a, b]), merge_forests([c, *rest])]), whole)
    assert same(merge_forests([merge_forests([b, merge_forests([*rest, a])]), c]), whole)
    assert same(merge_forests([whole, whole, a, Forest()]), whole)
    builder = ForestBuilder(limit=random.randrange(1, 50))
    for p in parts:
        builder.add(i[p], j[p], similarity[p])
    assert same(builder.forest(), whole)


def test_one_forest_serves_all_higher_thresholds():
    rng = np.random.default_rng(1)
    centres, noise = rng.standard_normal((40, 6)), 0.4 * rng.standard_normal((400, 6))
    unit = unit_rows(centres[rng.integers(0, 40, 400)] + noise)
    pairs, similarity = threshold_join(unit, 0.5)
    forest = spanning_forest(*pairs.T, similarity)
    sizes = []
    for threshold in (0.5, 0.6, 0.75, 0.9, 0.97, float(np.median(similarity))):
        again, at_threshold = threshold_join(unit, threshold)
        assert same(forest.above(threshold), spanning_forest(*again.T, at_threshold))
        sizes.append((threshold, len(forest.above(threshold))))
    removed = [size for _, size in sorted(sizes)]
    assert removed == sorted(removed, reverse=True)  # a lower threshold removes more
    assert removed[0] > removed[-1]


def test_chain_leaves_one_whatever_the_order():
    angle = np.deg2rad([0, 20, 40])
    chain = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]):
        pairs, similarity = threshold_join(chain[order], np.cos(np.deg2rad(25)))
        assert len(pairs) == 2
        _, labels = connected_components(spanning_forest(*pairs.T, similarity))
        assert labels.tolist() == [0, 0, 0]


def test_clique_costs_one_edge_less_than_its_vertices():
    n, builder, most = 10_000, ForestBuilder(limit=1 << 18), 0
    for start in range(0, n, 25):
        i, j = np.repeat(np.arange(start, start + 25), n), np.tile(np.arange(n), 25)
        if start % 1000:
            i, j = i[::40], j[::40]  # thinned, to be quick
        builder.add(i, j, np.ones(len(i), np.float32))
        most = max(most, builder._count + len(builder._forest))
    forest = builder.forest()
    assert len(forest) == n - 1
    assert most <= (1 << 18) + n
    assert set(connected_components(forest)[1].tolist()) == {0}


def test_similarity_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        spanning_forest([1, 2], [2, 3], [0.5, np.nan])


def test_nothing_at_all():
    forest = spanning_forest([], [], [])
    assert len(forest) == 0
    assert same(forest, merge_forests([]))
    assert [len(column) for column in connected_components(forest)] == [0, 0]
    assert len(representatives([], [])) == 0
    assert len(split_by_similarity([], [], lambda i, j: np.empty(0, np.float32), 0.5)) == 0
    assert len(spanning_forest([5], [5], [1.0])) == 0


def test_representative_has_most_pixels_then_smallest_id_then_smallest_uri():
    labels = [7, 3, 7, 7, 3, 7, 9]
    pixels = [100, 50, 400, 400, 50, 400, 1]
    ids = ["a", "c", "b", "a", "c", "a", "z"]
    uris = ["1", "2", "3", "9", "10", "5", "6"]
    assert representatives(labels, preference(pixels, ids, uris)).tolist() == [5, 4, 5, 5, 4, 5, 6]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.sampled_from("abc")), min_size=1))
def test_representative_is_the_minimum_of_its_component(rows):
    uris = [str(k) for k in range(len(rows))]
    labels, pixels, ids = zip(*rows, strict=True)
    found = representatives(labels, preference(pixels, ids, uris))
    for k, label in enumerate(labels):
        members = [m for m in range(len(rows)) if labels[m] == label]
        assert found[k] == min(members, key=lambda m: (-pixels[m], ids[m], uris[m]))


def test_split_puts_every_member_within_the_bound_of_its_representative():
    rng = np.random.default_rng(2)
    walk = unit_rows(np.cumsum(rng.standard_normal((300, 12)) * 0.1, axis=0) + 1)  # a chain that drifts away
    labels = np.repeat([0, 100, 200], 100)
    rank = rng.permutation(300)

    def similarity(i, j):
        return pair_similarities(walk, walk, i, j)

    found = split_by_similarity(labels, rank, similarity, 0.9)
    others = np.flatnonzero(found != np.arange(300))
    assert 3 < len(set(found.tolist())) < 200
    assert (similarity(others, found[others]) >= np.float32(0.9)).all()
    np.testing.assert_array_equal(labels[found], labels)
    np.testing.assert_array_equal(found[found], found)
    expected = np.empty(300, int)
    for label in (0, 100, 200):  # the definition, one member at a time
        left = sorted(np.flatnonzero(labels == label), key=lambda k: rank[k])
        while left:
            head, members = left[0], left[1:]
            taken = [k for k in members if similarity([k], [head])[0] >= np.float32(0.9)]
            expected[[head, *taken]] = head
            left = [k for k in members if k not in taken]
    np.testing.assert_array_equal(found, expected)
    whole = split_by_similarity(labels, rank, similarity, -1)
    np.testing.assert_array_equal(whole, representatives(labels, rank))


def test_tightness_is_the_lowest_similarity_to_the_representative():
    unit = unit_rows(np.random.default_rng(4).standard_normal((30, 3)))
    representative = np.array([0] * 10 + [12] * 10 + list(range(20, 30)))

    def similarity(i, j):
        return pair_similarities(unit, unit, i, j)

    heads, lowest = tightness(representative, similarity)
    assert heads.tolist() == [0, 12, *range(20, 30)]
    assert lowest[0] == min(similarity(range(1, 10), [0] * 9))
    assert lowest[1] == min(similarity([10, 11, *range(13, 20)], [12] * 9))
    assert lowest[2:].tolist() == [1.0] * 10
