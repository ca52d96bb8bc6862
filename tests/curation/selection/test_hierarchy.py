from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from granary.curation.selection.hierarchy import (
    Level,
    allocate,
    fit_hierarchy,
    share,
    squared_distance,
    water_level,
)
from granary.curation.store.sampling import StratifiedSample

RINGS = np.array([(-2.2, 1), (0, 1), (2.2, 1), (-1.2, 0.2), (1.2, 0.2)])
RING_SIZES = np.array([20_000, 200, 1000, 500, 8000])


def five_rings(sizes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points uniform in five rings of equal area with radii 0.7 to 1, and their rings."""
    rng = np.random.default_rng(seed)
    ring = np.repeat(np.arange(5), sizes)
    radius, angle = np.sqrt(rng.uniform(0.49, 1, len(ring))), rng.uniform(0, 2 * np.pi, len(ring))
    points = RINGS[ring] + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return points.astype(np.float32), ring


def divergence(ring: np.ndarray) -> float:
    """KL divergence of the shares of the rings from equal shares, in nats."""
    shares = np.bincount(ring, minlength=5) / len(ring)
    return float(sum(p * np.log(5 * p) for p in shares if p))


def draw(leaves: np.ndarray, budgets: np.ndarray, seed: int, distances: np.ndarray | None = None) -> np.ndarray:
    """Draw from the leaves as the stage does, at random or nearest first; returns positions."""
    positions = np.arange(len(leaves))
    return StratifiedSample(budgets, seed, "leaf").add(leaves, positions.astype(str), positions, distances).indices


def balanced_draw(points: np.ndarray, levels: list[Level], target: int) -> np.ndarray:
    leaves = levels[0].parents
    budgets = allocate(levels[1:], np.bincount(leaves, minlength=len(levels[0].centroids)), target, seed=0)
    chosen = draw(leaves, budgets, seed=0)
    assert len(chosen) == target
    return chosen


def brute_force_level(sizes: list[int], target: int) -> int:
    level = 0
    while level < max(sizes) and sum(min(level + 1, n) for n in sizes) <= target:
        level += 1
    return level


def random_tree(rng: np.random.Generator, leaves: int) -> list[Level]:
    counts = [leaves, 12, 5, 2]
    return [Level(np.zeros((above, 1), np.float32), rng.integers(0, above, below)) for below, above in pairwise(counts)]


def test_water_level_of_the_worked_examples():
    sizes = [100, 50, 10, 3]
    assert water_level(sizes, 60) == 23
    assert sorted(share(sizes, 60, range(4), 0).tolist()) == [3, 10, 23, 24]
    assert max(share(sizes, 60, range(4), seed)[0] for seed in range(20)) == 24
    assert max(share(sizes, 60, range(4), seed)[1] for seed in range(20)) == 24
    assert water_level(sizes, 63) == 25
    assert share(sizes, 63, range(4), 0).tolist() == [25, 25, 10, 3]
    assert share(sizes, 10_000, range(4), 0).tolist() == sizes
    assert share([], 5, [], 0).tolist() == []


def test_water_level_and_shares_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    for trial in range(1000):
        sizes = rng.integers(0, rng.choice([2, 10, 60]), rng.integers(1, 12)).tolist()
        target = int(rng.integers(0, sum(sizes) + 10))
        level = brute_force_level(sizes, target)
        assert water_level(sizes, target) == level
        shares = share(sizes, target, np.arange(len(sizes)), seed=trial)
        assert shares.sum() == min(target, sum(sizes))
        for given, n in zip(shares, sizes, strict=True):
            assert given in (min(n, level), min(n, level + 1))


def test_the_remainder_goes_to_every_child_equally_often():
    received = sum(share([9, 9, 9, 9, 1], 22, range(5), seed) for seed in range(1500))
    extra = received - 1500 * np.array([5, 5, 5, 5, 1])
    assert extra[4] == 0
    assert extra.sum() == 1500
    assert np.abs(extra[:4] - 375).max() < 4 * np.sqrt(1500 * 0.25 * 0.75)


def test_no_shortfall_and_no_leaf_over_its_size():
    rng = np.random.default_rng(1)
    for _ in range(40):
        sizes = rng.integers(0, 30, 60)
        levels = random_tree(rng, 60)
        for target in (0, 1, 37, int(sizes.sum()), 10**6):
            budgets = allocate(levels, sizes, target, seed=4)
            assert budgets.sum() == min(target, sizes.sum())
            assert (budgets <= sizes).all()


def test_siblings_that_are_not_full_differ_by_at_most_one():
    rng = np.random.default_rng(5)
    sizes, levels = rng.integers(0, 50, 60), random_tree(rng, 60)
    budgets, flat = allocate(levels, sizes, 400, seed=1), sizes
    for level in levels:
        for parent in range(len(level.centroids)):
            children = level.parents == parent
            open_ones = budgets[children & (budgets < flat)]
            assert len(open_ones) == 0 or np.ptp(open_ones) <= 1
            assert (budgets[children] <= (open_ones.max() if len(open_ones) else np.inf)).all()
        size = len(level.centroids)
        budgets = np.bincount(level.parents, budgets, size).astype(int)
        flat = np.bincount(level.parents, flat, size).astype(int)


def test_cells_count_with_all_samples_below_not_with_their_children():
    # Two cells; the first has one leaf of 100 samples, the second 99 leaves of one sample.
    parents = np.array([0] + [1] * 99)
    budgets = allocate([Level(np.zeros((2, 1), np.float32), parents)], [100] + [1] * 99, 150, seed=0)
    assert budgets[0] == 75
    assert budgets[1:].sum() == 75


def test_leaf_draws_keep_the_budget_at_random_or_by_distance():
    rng = np.random.default_rng(0)
    leaves, distances = rng.integers(0, 4, 200), rng.permutation(200)
    sizes = np.bincount(leaves)
    budgets = np.array([5, 0, sizes[2], 3])
    for by in (None, distances):
        drawn = draw(leaves, budgets, 1, by)
        assert len(set(drawn)) == len(drawn)
        assert np.bincount(leaves[drawn], minlength=4).tolist() == budgets.tolist()
        for leaf in (0, 3):
            taken = np.sort(distances[drawn[leaves[drawn] == leaf]])
            nearest = np.sort(distances[leaves == leaf])[: len(taken)]
            assert np.array_equal(taken, nearest) == (by is not None)


def scikit_learn(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    first, _ = kmeans_plusplus(points, k, random_state=seed, n_local_trials=2 + int(np.log(k)))
    return KMeans(k, init=first, n_init=1, max_iter=20, tol=0).fit(points).cluster_centers_


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_level_is_k_means_of_scikit_learn_on_the_points_nearest_its_centroids(rounds):
    points, _ = five_rings(RING_SIZES // 40, 0)
    (level,) = fit_hierarchy(points, [12], rounds, seed=6, nearest=[9], iterations=20)
    exact = points.astype(np.float64)
    theirs = scikit_learn(exact, 12, 6)
    for step in range(1, rounds + 1):
        away = np.linalg.norm(exact[:, None] - theirs, axis=2)
        chosen = [np.flatnonzero(away.argmin(1) == cell) for cell in range(12)]
        chosen = [members[np.argsort(away[members, cell])[:9]] for cell, members in enumerate(chosen)]
        theirs = scikit_learn(exact[np.sort(np.concatenate(chosen))], 12, 6 + step)
    assert np.abs(level.centroids - theirs).max() < 1e-4
    distances = [squared_distance(points, np.broadcast_to(c, points.shape)) for c in level.centroids]
    assert np.array_equal(level.parents, np.argmin(distances, axis=0))


def test_every_point_has_a_cell_after_resampling_and_runs_repeat():
    points, _ = five_rings(RING_SIZES // 40, 1)
    levels = fit_hierarchy(points, [80, 20, 4], nearest=[4, 2, 2], resamples=3, iterations=8, seed=2)
    again = fit_hierarchy(points, [80, 20, 4], nearest=[4, 2, 2], resamples=3, iterations=8, seed=2)
    for level, repeat, n, k in zip(levels, again, [len(points), 80, 20], [80, 20, 4], strict=True):
        assert level.parents.shape == (n,)
        assert level.parents.min() >= 0
        assert level.parents.max() < k == len(level.centroids)
        assert level.centroids.tobytes() == repeat.centroids.tobytes()
    other = fit_hierarchy(points, [80], nearest=[4], resamples=3, iterations=8, seed=3)
    assert other[0].centroids.tobytes() != levels[0].centroids.tobytes()


def test_copies_and_wrong_sizes():
    points = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    (level,) = fit_hierarchy(points, [5], resamples=2, seed=0)
    assert np.array_equal(level.centroids[level.parents], points)
    small = fit_hierarchy(points[8:12], [100, 100, 1], resamples=2, seed=0)
    assert [len(level.centroids) for level in small] == [4, 4, 1]
    assert allocate(small, [5, 5, 5, 5], 8, seed=0).sum() == 8
    assert allocate(fit_hierarchy(points[:0], [3, 2]), [], 8, seed=0).tolist() == []
    with pytest.raises(ValueError, match=r"got \[0\]"):
        fit_hierarchy(points, [0])
    with pytest.raises(ValueError, match="NaN"):
        fit_hierarchy(points * np.float32(np.nan), [3])
    with pytest.raises(ValueError, match="zip"):
        fit_hierarchy(points, [5, 2], nearest=[1])


def test_hierarchy_flattens_five_rings_reduced():
    points, ring = five_rings(RING_SIZES // 8, 0)
    flat = fit_hierarchy(points, [200], resamples=0, iterations=10)
    deep = fit_hierarchy(points, [200, 60], nearest=[9, 2], resamples=5, iterations=10)
    random_draw = divergence(ring)
    flat_draw = divergence(ring[balanced_draw(points, flat, 200)])
    deep_draw = divergence(ring[balanced_draw(points, deep, 200)])
    assert deep_draw < flat_draw / 2 < random_draw / 4


@pytest.mark.slow
def test_hierarchy_flattens_five_rings():
    points, ring = five_rings(RING_SIZES, 0)
    flat = fit_hierarchy(points, [1000], resamples=0, iterations=15)
    two = [*flat, *fit_hierarchy(flat[0].centroids, [300], resamples=0, iterations=15)]
    resampled = fit_hierarchy(points, [1000, 300], nearest=[15, 2], resamples=10, iterations=15)
    draw = {
        name: divergence(ring[balanced_draw(points, levels, 1000)])
        for name, levels in (("flat", flat), ("two", two), ("resampled", resampled))
    }
    print(divergence(ring), draw)
    assert divergence(ring) == pytest.approx(0.771, rel=0.3)
    assert draw["flat"] == pytest.approx(0.36, rel=0.3)
    assert draw["two"] < draw["flat"] / 2
    assert draw["resampled"] < draw["two"] / 2
