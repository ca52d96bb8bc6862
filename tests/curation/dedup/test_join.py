"""The join against brute force in exact arithmetic, and against every trap that its bound could fall into."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from granary.curation.dedup import join
from granary.curation.dedup.blocks import choose_prefix, fit_rotation, prepare, unit_rows
from granary.curation.dedup.join import (
    Edges,
    concatenate,
    join_blocks,
    merge_top_k,
    pair_similarities,
    threshold_join,
    top_k_neighbours,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def brute_force(unit, threshold):
    """All pairs and similarities of unit rows, from sums without rounding wherever rounding could matter."""
    wide = unit.astype(np.float64)
    inner = wide @ wide.T
    similarity = inner.astype(np.float32)
    near = np.abs(inner - threshold) < 1e-9
    for i, j in zip(*np.nonzero(near), strict=True):
        similarity[i, j] = math.fsum((wide[i] * wide[j]).tolist())
    i, j = np.nonzero(np.triu(similarity > np.float32(threshold), 1))
    return np.stack([i, j], axis=1), similarity[i, j]


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def joined(unit, threshold, prefix, dtype, tile=None):
    """`threshold_join` without its normalisation, in a given type of the pruning product."""
    block = prepare(unit, fit_rotation(unit), prefix, dtype=dtype)
    i, j, similarity = concatenate(join_blocks(block, None, threshold, tile=tile))
    order = np.lexsort((j, i))
    return np.stack([i, j], axis=1)[order], similarity[order]


def at_angle(x, similarity, rng):
    """A unit row whose inner product with the unit row x is `similarity`, but for rounding to float32."""
    other = rng.standard_normal(len(x))
    other -= (other @ x) * x / (x @ x)
    return similarity * x + math.sqrt(1 - similarity**2) * other / np.linalg.norm(other)


def clustered(n, d, seed=0, decay=1.0):
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** (-decay / 2)
    centres = rng.standard_normal((max(1, n // 20), d)) * scale
    noise = rng.uniform(0, 1, (n, 1)) * rng.standard_normal((n, d)) * scale
    return unit_rows(centres[rng.integers(0, len(centres), n)] + noise)


@pytest.mark.parametrize("threshold", [-0.2, 0.45, 0.9, 0.99])
@pytest.mark.parametrize(("n", "d", "prefix"), [(400, 96, 16), (200, 5, 64), (200, 32, 32), (100, 1, 1)])
def test_edges_are_those_of_brute_force(n, d, prefix, threshold):
    unit = clustered(n, d)
    expected = brute_force(unit, threshold)
    for dtype in DTYPES:
        assert_same(joined(unit, threshold, prefix, dtype, tile=128), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1e-6, 1e-7])
@pytest.mark.parametrize("prefix", [1, 8, 64])
def test_pairs_at_the_threshold_within_a_hair(prefix, gap, dtype):
    rng = np.random.default_rng(prefix)
    rows = []
    for k in range(150):
        x = at_angle(unit_rows(rng.standard_normal((1, 64)))[0].astype(np.float64), 0, rng)
        rows += [x, at_angle(x, 0.9 + gap * (-1) ** k, rng)]
    unit = unit_rows(np.array(rows))
    found = joined(unit, 0.9, prefix, dtype)
    assert_same(found, brute_force(unit, 0.9))
    planted = {(2 * k, 2 * k + 1) for k in range(0, 150, 2)}
    assert set(map(tuple, found[0].tolist())) == planted


def worst_rounding(dtype, d=64):
    """Unit rows whose elements, before scaling, lie by the middle of two numbers of the type."""
    step = torch.finfo(dtype).eps
    mantissa = 1 + step * (np.arange(d) % 40) + step * 0.499
    signs = np.where(np.arange(d) % 3, 1.0, -1.0)
    rows = [np.roll(mantissa, k) * signs / 8 for k in range(d)]
    return unit_rows(np.array(rows + [-row for row in rows[: d // 2]]))


def energy(d, where):
    """Rows with all energy outside the leading directions, all in them, or split."""
    rng = np.random.default_rng(5)
    rows = np.zeros((120, d))
    rows[:, where] = rng.standard_normal((120, len(range(d)[where])))
    return unit_rows(rows + rows[rng.integers(0, 120, 120)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.95])
def test_no_edge_is_lost_to_rounding_or_to_where_the_energy_is(threshold, dtype):
    places = (slice(0, 8), slice(8, 48), slice(48))
    for rows in (worst_rounding(dtype), *(energy(48, where) for where in places)):
        identity = np.eye(rows.shape[1], dtype=np.float32)
        expected = brute_force(rows, threshold)
        for rotation in (identity, fit_rotation(rows)):
            block = prepare(rows, rotation, 8, dtype=dtype)
            found = concatenate(join_blocks(block, None, threshold))
            assert_same((np.stack([found.i, found.j], 1), found.similarity), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("error", [0.0, 1e-4, 1e-3])
def test_bound_holds_for_every_pair_and_is_close(dtype, error):
    """A pair reaches the cutoff of its own similarity, also where the rotation is not quite one."""
    rng = np.random.default_rng(3)
    unit = np.concatenate([clustered(200, 40), worst_rounding(dtype, 40)])
    rotation = fit_rotation(unit) + (error * rng.standard_normal((40, 40))).astype(np.float32)
    for prefix in (1, 7, 40):
        block = prepare(unit, rotation, prefix, dtype=dtype)
        products = (block.heads @ block.heads.T).double().numpy()
        places = np.concatenate([rng.integers(0, len(unit), (300, 2)), np.c_[: len(unit), : len(unit)]])
        room = [
            products[i, j] - join._cutoff(block, block, float(unit[i].astype(float) @ unit[j].astype(float)))
            for i, j in places
        ]
        assert min(room) >= 0
    if error == 0:  # all directions kept: what is left is the rounding of the type
        assert max(room) < {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


def test_lower_precision_allowed_for_float32_products_widens_the_bound():
    unit = clustered(50, 16)
    block = prepare(unit, fit_rotation(unit), 8, dtype=torch.float32)
    before = join._cutoff(block, block, 0.9)
    torch.set_float32_matmul_precision("medium")
    try:
        assert join._cutoff(block, block, 0.9) <= before - 2**-7
    finally:
        torch.set_float32_matmul_precision("highest")


def test_similarity_at_the_threshold_is_no_edge():
    rows = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0]], np.float32)
    assert len(threshold_join(rows, 0.5)[0]) == 0
    assert threshold_join(rows, np.nextafter(0.5, 0, dtype=np.float32))[0].tolist() == [[0, 1], [1, 2]]
    # 0.6 is no float32: the cosine of (1, 0) and (0.6, 0.8) must still count as 0.6
    assert len(threshold_join(np.array([[1, 0], [0.6, 0.8]]), 0.6)[0]) == 0


def test_similarity_is_the_exact_sum_where_the_order_of_summation_decides():
    # 1/2 + 2^-25 is midway between two float32: which way 2^-60 tips it, no float64 sum can see
    x = np.array([[0.5, 2.0**-12, 2.0**-30, 0, 0.8660253]], np.float32)
    up = np.array([[1, 2.0**-13, 2.0**-20, 0, 0]], np.float32)
    down = up * np.array([1, 1, -1, 1, 1], np.float32)
    assert pair_similarities(x, up, [0], [0])[0] == np.float32(0.5) + np.float32(2.0**-24)
    assert pair_similarities(x, down, [0], [0])[0] == np.float32(0.5)


def test_scaling_a_row_changes_no_edge():
    unit = clustered(400, 24)
    scaled = unit * np.where(np.arange(400) % 2, 7, 1e-3).astype(np.float32)[:, None]
    first, second = threshold_join(unit, 0.8), threshold_join(scaled, 0.8)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[1], second[1], atol=2e-7)


def test_result_is_the_same_for_all_shapes_and_threads():
    unit = clustered(600, 80)
    expected = threshold_join(unit, 0.7)
    assert len(expected[0]) > 1000
    before = torch.get_num_threads()
    try:
        for threads, prefix, tile in ((1, 16, 64), (2, 33, 100), (3, 80, 7), (2, 1, 1000)):
            torch.set_num_threads(threads)
            assert_same(threshold_join(unit, 0.7, prefix=prefix, tile=tile), expected)
    finally:
        torch.set_num_threads(before)


def test_blocks_together_give_the_edges_of_the_whole():
    unit = clustered(500, 40)
    rotation, cuts = fit_rotation(unit), [0, 90, 90, 301, 500]
    blocks = [prepare(unit[a:b], rotation, 16) for a, b in pairwise(cuts)]
    parts = []
    for a, left in enumerate(blocks):
        for b in range(a, len(blocks)):
            edges = concatenate(join_blocks(left, None if a == b else blocks[b], 0.7, tile=50))
            parts.append(Edges(edges.i + cuts[a], edges.j + cuts[b], edges.similarity))
    i, j, similarity = concatenate(parts)
    order = np.lexsort((j, i))
    assert_same((np.stack([i, j], 1)[order], similarity[order]), threshold_join(unit, 0.7))


def test_dense_and_sparse_scoring_agree(monkeypatch):
    unit = clustered(300, 64)
    expected = threshold_join(unit, 0.2)
    for held in (64, 4096, 1 << 30):
        monkeypatch.setattr(join, "SCORED_AT_ONCE", held)
        for dense in (0, 1 << 30):
            monkeypatch.setattr(join, "DENSE", dense)
            assert_same(threshold_join(unit, 0.2), expected)


def test_copies_and_rows_of_zeros():
    unit = clustered(20, 32)
    rows = np.concatenate([np.repeat(unit[:1], 60, axis=0), np.zeros((5, 32)), np.eye(32)[:3]])
    pairs, similarity = threshold_join(rows, 0.999)
    assert set(map(tuple, pairs.tolist())) == {(i, j) for i in range(60) for j in range(i + 1, 60)}
    assert len(set(similarity.tolist())) == 1


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (8, 0), (0, 0)])
def test_nothing_to_join(shape):
    pairs, similarity = threshold_join(np.ones(shape, np.float32), 0.5)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64
    assert similarity.dtype == np.float32
    empty = prepare(np.empty((0, 8), np.float32), np.eye(8))
    assert list(join_blocks(empty, None, 0.5)) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_that_is_not_finite_is_named(bad):
    rows = clustered(30, 8)
    rows[17, 3] = bad
    with pytest.raises(ValueError, match="row 17"):
        threshold_join(rows, 0.5)
    with pytest.raises(ValueError, match="row 17"):
        prepare(rows, np.eye(8), 4)


def test_mistakes_are_refused():
    unit = clustered(30, 8)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        threshold_join(unit, 1.5)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        threshold_join(unit, float("nan"))
    with pytest.raises(ValueError, match="shape"):
        threshold_join(unit[0], 0.5)
    with pytest.raises(ValueError, match=r"row 4 .* length 7"):
        prepare(unit * np.where(np.arange(30) == 4, 7, 1)[:, None], np.eye(8), 4)
    with pytest.raises(ValueError, match="not orthogonal"):
        prepare(unit, np.ones((8, 8)), 4)
    with pytest.raises(ValueError, match="do not fit"):
        prepare(unit, np.eye(9), 4)
    with pytest.raises(ValueError, match="prepared with different"):
        list(join_blocks(prepare(unit, np.eye(8), 4), prepare(unit, fit_rotation(unit), 4), 0.5))


def test_rotation_is_orthogonal_and_leads_with_the_energy():
    unit = clustered(2000, 48)
    rotation = fit_rotation(unit, rows=1500, seed=3)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(48), atol=2e-6)
    energies = ((unit @ rotation) ** 2).mean(axis=0)
    optimum = np.linalg.svd(unit.astype(np.float64), compute_uv=False) ** 2 / len(unit)
    assert energies[:8].sum() > 0.99 * optimum[:8].sum()
    np.testing.assert_array_equal(rotation, fit_rotation(unit, rows=1500, seed=3))


def test_prefix_is_short_where_pruning_is_easy_and_long_where_it_is_not():
    easy, hard = clustered(3000, 256, decay=2.0), clustered(3000, 256, decay=0.0)
    assert choose_prefix(easy, fit_rotation(easy), 0.95) <= 64
    assert choose_prefix(hard, fit_rotation(hard), 0.1) == 256


def brute_neighbours(unit, k, threshold):
    similarity = (unit.astype(np.float64) @ unit.astype(np.float64).T).astype(np.float32)
    np.fill_diagonal(similarity, -np.inf)
    order = np.lexsort((np.broadcast_to(np.arange(len(unit)), similarity.shape), -similarity))[:, :k]
    linked = similarity > np.float32(threshold)
    return {(i, int(j)) for i in range(len(unit)) for j in order[i] if linked[i, j]}


@pytest.mark.parametrize("k", [1, 5, 64])
def test_k_limited_graph(k):
    unit = clustered(400, 24)
    unit[200:230] = unit[7]  # ties: thirty copies
    rotation, cuts = fit_rotation(unit), [0, 150, 400]
    blocks = [prepare(unit[a:b], rotation, 8) for a, b in pairwise(cuts)]
    units = []
    for a, queries in enumerate(blocks):
        parts = [
            top_k_neighbours(
                queries, None if a == b else blocks[b], k, 0.6, query_start=cuts[a], block_start=cuts[b], tile=40
            )
            for b in (1, 0)
        ]
        units.append(merge_top_k(parts, k))
    expected = brute_neighbours(unit, k, 0.6)
    neighbours = concatenate(units)
    assert set(zip(neighbours.i.tolist(), neighbours.j.tolist(), strict=True)) == expected
    scores = pair_similarities(unit, unit, neighbours.i, neighbours.j)
    np.testing.assert_array_equal(neighbours.similarity, scores)


@pytest.mark.slow
def test_growing_size_keeps_exactness():
    unit = clustered(12_000, 128)
    assert_same(threshold_join(unit, 0.9), brute_force(unit_rows(unit), 0.9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.95])
def test_gpu_gives_the_edges_of_the_cpu(threshold):
    unit = clustered(5000, 200)
    assert_same(threshold_join(unit, threshold, device="cuda", tile=1000), threshold_join(unit, threshold))
