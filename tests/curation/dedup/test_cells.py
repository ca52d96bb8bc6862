"""The join inside cells against brute force over the cells, and the cells against whole numbers sorted."""

from __future__ import annotations

import numpy as np
import pytest

from granary.curation.dedup import cells
from granary.curation.dedup.blocks import fit_rotation, prepare, unit_rows
from granary.curation.dedup.join import concatenate, threshold_join
from granary.curation.dedup.reach import Reach, cell_count
from granary.curation.store.threads import limit_threads


def rows(n=400, d=24, seed=0):
    """Rows around 20 centres, every fourth a near copy of the one before."""
    rng = np.random.default_rng(seed)
    vectors = 0.5 * rng.standard_normal((20, d))[rng.integers(0, 20, n)] + rng.standard_normal((n, d))
    vectors[1::4] = vectors[::4] + 0.8 * rng.standard_normal((n // 4, d))
    return unit_rows(vectors)


@pytest.mark.parametrize("at_once", [7, 4096])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_nearest_cells_are_those_of_whole_numbers_sorted(monkeypatch, at_once, threads):
    unit = rows()
    unit[5] = 0  # equally near to all
    trained = cells.train_cells(unit, 12, 0)
    trained.centroids[3] = trained.centroids[7]  # a tie for every row
    monkeypatch.setattr(cells, "ROWS", at_once)
    limit_threads(threads)
    near = cells.nearest_cells(unit, trained, 12)
    heads = np.rint(unit * 2000).astype(np.int64) @ trained.directions.astype(np.int64)
    length = np.sqrt((heads.astype(np.float64) ** 2).sum(1))
    heads = np.rint(heads.astype(np.float32) * (2000 / np.where(length > 0, length, 1))[:, None]).astype(np.int64)
    products = heads @ trained.centroids.astype(np.int64).T
    assert near.tolist() == np.argsort(-products, axis=1, kind="stable").tolist()
    assert cells.nearest_cells(unit, trained, 5).tolist() == near[:, :5].tolist()


@pytest.mark.parametrize("reach", [Reach(1, 1), Reach(1, 4), Reach(2, 3), Reach(3, 3)])
@pytest.mark.parametrize("tile", [16, 1024])
def test_the_join_finds_the_edges_that_share_a_cell_and_no_other(monkeypatch, reach, tile):
    from granary.curation.dedup import join

    monkeypatch.setattr(join, "GROUP_TILE", tile)
    unit = rows()
    pairs, similarity = threshold_join(unit, 0.6)
    near = cells.nearest_cells(unit, cells.train_cells(unit, 24, 0), reach.probes)
    edges = concatenate(cells.join_cells(prepare(unit, fit_rotation(unit), 8), near, reach, 0.6))
    joined = cells.distinct_pairs(edges)
    sets = [(set(row[: reach.homes]), set(row[: reach.probes])) for row in near.tolist()]
    shared = [bool(sets[i][0] & sets[j][1] or sets[j][0] & sets[i][1]) for i, j in pairs]
    assert 0 < sum(shared) < len(pairs)
    assert cells.are_seen(near[pairs[:, 0]], near[pairs[:, 1]], reach).tolist() == shared
    np.testing.assert_array_equal(joined[0], pairs[shared])
    np.testing.assert_array_equal(joined[1], similarity[shared])


def test_one_cell_is_the_join_of_every_pair():
    unit = rows()
    found, exact = cells.cell_join(unit, 0.8, cells=1), threshold_join(unit, 0.8)
    np.testing.assert_array_equal(found[0], exact[0])
    np.testing.assert_array_equal(found[1], exact[1])
    assert cells.cell_join(np.zeros((0, 8)), 0.8)[0].shape == (0, 2)


def test_cells_below_zero_hold_nobody():
    unit = rows(40)
    block = prepare(unit, fit_rotation(unit), 8)
    assert not list(cells.join_cells(block, np.full((40, 2), -1, np.int32), Reach(1, 2), 0.5))


def test_the_cheapest_reach_that_sees_enough_is_chosen():
    left = np.tile(np.arange(6, dtype=np.int32), (200, 1))
    right = left.copy()
    right[:50] = [9, 8, 0, 7, 6, 5]  # a quarter meets at the third probe of one and the first of the other
    for recall, reach in ((0.75, Reach(1, 1)), (0.76, Reach(1, 3))):
        chosen = cells.choose_reach(left, right, recall)
        assert chosen == reach
        assert cells.are_seen(left, right, chosen).mean() >= recall
    right[:50] = 99
    assert cells.choose_reach(left, right, 0.9) == Reach(4, 6)
    assert cells.choose_reach(left[:99], right[:99], 0.9) == Reach(3, 6)


def test_the_number_of_cells_grows_with_the_root_of_the_pool():
    assert [cell_count(n) for n in (0, 15, 200_000, 800_000, 10**9)] == [1, 1, 2048, 4096, 16_384]
