from __future__ import annotations

import hashlib

import numpy as np
from scipy import stats

from granary.curation.selection.retrieval import ClusterDraw, capped, sample_retrieval
from granary.curation.selection.search import top_k

# DINOv2, Table 15. As is: (set, images). Sampled: (set, images, k, final). Clustered: thousands retrieved.
AS_IS = [("ImageNet-22k", 14_197_086), ("Mapillary SLS", 1_434_262), ("Google Landmarks v2", 1_580_470)]
SAMPLED = [
    ("ImageNet-22k", 14_197_086, 4, 56_788_344),
    ("ImageNet-1k", 1_281_167, 32, 40_997_344),
    ("Google Landmarks v2", 1_580_470, 4, 6_321_880),
]
CLUSTERED = [
    960, 830, 2630, 1300, 1580, 1170, 1060, 21_670, 2750, 7220, 18_950, 1010, 20_720, 1390, 10_140, 3700,
    10_850, 4870, 62_860, 3680, 3660,
]  # fmt: skip


def ids_of(n: int) -> np.ndarray:
    return np.array([hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(n)])


def cluster_retrieval(seed_cells, pool_cells, ids, min_seeds=3, per_cell=10_000, cap=1_000_000, seed=0):
    """Draw from a pool in one block."""
    k = int(max(np.max(seed_cells, initial=-1), np.max(pool_cells, initial=-1))) + 1
    draw = ClusterDraw(seed_cells, k, min_seeds, per_cell, seed)
    return draw.add(pool_cells, ids, np.arange(len(pool_cells))).finish(cap)


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_table_15_adds_up():
    assert all(images * k == final for _, images, k, final in SAMPLED)
    capped = sum(min(1000, thousands) * 1000 for thousands in CLUSTERED)
    assert sum(row[1] for row in AS_IS) == 17_211_818
    assert sum(row[3] for row in SAMPLED) == 104_107_568
    assert capped == 20_790_000
    assert sum(row[1] for row in AS_IS) + sum(row[3] for row in SAMPLED) + capped == 142_109_386


def test_retrievals_are_k_per_seed_and_one_row_per_image():
    seeds, pool = unit_rows(60, 16, 0), unit_rows(90, 16, 1)
    similarities, indices = top_k(seeds, pool, np.arange(90), 4)
    result = sample_retrieval(similarities, indices, seed_indices=np.arange(60) + 1000)
    assert result.retrievals == 4 * 60 == len(result.seeds)
    assert result.images.tolist() == sorted(set(indices.ravel()))
    assert result.distinct == len(result.images) < 240
    for position, image in enumerate(result.images):
        part = slice(result.starts[position], result.starts[position + 1])
        expected = sorted((-similarities[q, s], q + 1000) for q, s in np.argwhere(indices == image))
        assert list(zip(-result.similarities[part], result.seeds[part], strict=True)) == expected


def test_padding_is_no_retrieval():
    similarities, indices = top_k(unit_rows(5, 8, 0), unit_rows(2, 8, 1), np.array([7, 9]), 4)
    result = sample_retrieval(similarities, indices)
    assert (result.retrievals, result.distinct, result.images.tolist()) == (10, 2, [7, 9])


def test_cap_keeps_whole_images_and_nests():
    similarities, indices = top_k(unit_rows(60, 16, 0), unit_rows(90, 16, 1), np.arange(90), 4)
    everything = sample_retrieval(similarities, indices)
    kept: set[int] = set()
    for cap in (0, 1, 10, 30, 1000):
        result = capped(everything, ids_of(90)[everything.images], cap, seed=3)
        assert len(result.images) == min(cap, everything.distinct)
        assert (result.retrievals, result.distinct) == (everything.retrievals, everything.distinct)
        assert kept <= set(result.images)
        kept = set(result.images)
        for position, image in enumerate(result.images):
            whole = np.searchsorted(everything.images, image)
            part = slice(result.starts[position], result.starts[position + 1])
            expected = everything.seeds[everything.starts[whole] : everything.starts[whole + 1]]
            assert result.seeds[part].tolist() == expected.tolist()


def test_a_cell_needs_strictly_more_than_min_seeds():
    seed_cells = np.repeat([0, 1, 2], [3, 4, 9])
    pool_cells = np.repeat([0, 1, 2, 3], [50, 6, 50, 50])
    result = cluster_retrieval(seed_cells, pool_cells, ids_of(156), per_cell=20)
    assert np.bincount(result.cells, minlength=4).tolist() == [0, 6, 20, 0]
    assert result.retrievals == 26
    assert np.array_equal(pool_cells[result.images], result.cells)
    assert np.array_equal(result.seeds_in_cell, np.where(result.cells == 1, 4, 9))


def test_cluster_draw_does_not_depend_on_blocks_or_their_order():
    rng = np.random.default_rng(0)
    ids, pool_cells, seed_cells = ids_of(600), rng.integers(0, 12, 600), rng.integers(0, 12, 60)
    whole = cluster_retrieval(seed_cells, pool_cells, ids, 4, 30, 100, seed=5)
    assert len(whole.images) == 100 < whole.retrievals
    for blocks in (1, 8, 90):
        draw = ClusterDraw(seed_cells, 12, 4, 30, 5)
        for part in np.array_split(rng.permutation(600), blocks):
            draw.add(pool_cells[part], ids[part], part)
        result = draw.finish(100)
        for name in ("images", "cells", "seeds_in_cell", "retrievals"):
            assert np.array_equal(getattr(result, name), getattr(whole, name)), name


def test_the_cap_favours_no_cell():
    # By the hash of the first draw the cap would take the large cell's images alone: its 20 of 2,000 all have
    # smaller priorities than nearly all of the small cell's 20 of 20.
    pool_cells = np.repeat([0, 1], [2000, 20])
    seed_cells, ids = np.repeat([0, 1], 4), ids_of(2020)
    draws = [cluster_retrieval(seed_cells, pool_cells, ids, 3, 20, 10, seed) for seed in range(60)]
    from_small = [(draw.cells == 1).sum() for draw in draws]
    assert stats.ttest_1samp(from_small, 5).pvalue > 1e-3


def test_a_cell_below_its_limit_gives_all_and_no_seeds_or_no_pool_nothing():
    assert len(cluster_retrieval(np.repeat(0, 5), np.zeros(30, int), ids_of(30)).images) == 30
    assert len(cluster_retrieval(np.empty(0, int), np.zeros(30, int), ids_of(30)).images) == 0
    assert len(cluster_retrieval(np.zeros(9, int), np.empty(0, int), np.empty(0, dtype=str)).images) == 0
