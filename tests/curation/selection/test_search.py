from __future__ import annotations

import faiss
import numpy as np
import pytest

from granary.curation.errors import UserError
from granary.curation.selection import search
from granary.curation.selection.search import (
    Approximation,
    TopK,
    approximate_top_k,
    best_k,
    merge_top_k,
    paired_similarity,
    rounding_bound,
    similarities_at,
    top_k,
    train_index,
)


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(queries: np.ndarray, pool: np.ndarray, indices: np.ndarray, k: int) -> TopK:
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    for row, query in enumerate(queries):
        values = [np.float32(np.sum(query.astype(np.float64) * vector)) for vector in pool]
        best = sorted(zip([-value for value in values], indices, strict=True))[:k]
        for slot, (negative, index) in enumerate(best):
            similarities[row, slot], found[row, slot] = -negative, index
    return similarities, found


def same(left: TopK, right: TopK) -> bool:
    types = [part.dtype for part in left] == [part.dtype for part in right]
    return types and [part.tobytes() for part in left] == [part.tobytes() for part in right]


def pool_with_ties(d: int = 24) -> tuple[np.ndarray, np.ndarray]:
    pool = unit_rows(400, d, 0)
    pool[100:140] = pool[7]  # more copies than any margin
    pool[200:205] = pool[8]
    nearly = pool[9] * (1 + np.arange(30)[:, None] * 2.0**-23)  # differ in the last bits only
    pool[300:330] = nearly.astype(np.float32)
    queries = np.concatenate([unit_rows(20, d, 1), pool[7:10]])
    return queries, pool


@pytest.mark.parametrize("k", [1, 4, 33, 399, 400])
def test_top_k_is_brute_force_to_the_bit(k):
    queries, pool = pool_with_ties()
    indices = np.random.default_rng(2).permutation(10_000)[:400]
    expected = brute_force(queries, pool, indices, k)
    assert same(top_k(queries, pool, indices, k), expected)
    assert same(top_k(queries, pool, indices, k, margin=1), expected)
    assert same(top_k(queries[:3], pool, indices, k), (expected[0][:3], expected[1][:3]))


@pytest.mark.parametrize("copies", [9, 60])  # fewer and more than the margin holds
def test_the_order_of_near_ties_is_not_that_of_float32_products(copies):
    d = 384
    base, queries = unit_rows(30, d, 0), unit_rows(5, d, 1)
    noise = 1e-7 * np.random.default_rng(2).normal(size=(5, copies, d))
    pool = np.concatenate([base, (0.9 * queries[:, None] + noise).astype(np.float32).reshape(-1, d)])
    expected = brute_force(queries, pool, np.arange(len(pool)), 4)
    rough = np.argsort(-(queries @ pool.T), axis=1, kind="stable")[:, :4]
    assert not np.array_equal(rough, expected[1])
    assert same(top_k(queries, pool, np.arange(len(pool)), 4), expected)


@pytest.mark.parametrize("seed", range(6))
def test_any_partition_in_any_order_merges_to_the_bytes_of_one_pass(seed):
    rng = np.random.default_rng(seed)
    queries, pool = pool_with_ties()
    indices = np.arange(400)
    whole = brute_force(queries, pool, indices, 12)
    order = rng.permutation(400) if seed % 2 else indices
    cuts = np.sort(rng.integers(0, 401, rng.integers(1, 30)))
    partials = [top_k(queries, pool[part], indices[part], 12) for part in np.split(order, cuts)]
    partials = [partials[i] for i in rng.permutation(len(partials))]
    half = len(partials) // 2
    assert same(merge_top_k(partials, 12), whole)
    if half:
        nested = [merge_top_k(partials[half:], 12), merge_top_k(partials[:half], 12)]
        assert same(merge_top_k(nested, 12), whole)


def test_fewer_rows_than_k_are_padded():
    similarities, found = top_k(unit_rows(3, 8, 0), unit_rows(2, 8, 1), np.array([5, 6]), 4)
    assert (found[:, 2:] == -1).all()
    assert (similarities[:, 2:] == -np.inf).all()
    assert (np.sort(found[:, :2], axis=1) == [5, 6]).all()
    nothing = unit_rows(2, 8, 1)[:0]
    assert top_k(unit_rows(3, 8, 0), nothing, np.arange(0), 2)[1].tolist() == [[-1, -1]] * 3
    assert best_k(*top_k(unit_rows(3, 8, 0), nothing, np.arange(0), 1), 2)[1].tolist() == [[-1, -1]] * 3
    assert top_k(nothing, unit_rows(2, 8, 1), np.arange(2), 4)[1].shape == (0, 4)


def test_rows_that_are_not_finite_are_never_found_and_hide_nothing():
    queries, pool = unit_rows(30, 16, 0), unit_rows(50, 16, 1)
    broken = pool.copy()
    broken[3, 0], broken[40, 5] = np.nan, np.inf
    healthy = np.setdiff1d(np.arange(50), [3, 40])
    assert same(top_k(queries, broken, np.arange(50), 5), top_k(queries, pool[healthy], healthy, 5))
    queries[11, 2] = np.nan
    similarities, found = top_k(queries, pool, np.arange(50), 5)
    assert (found[11] == -1).all()
    assert (similarities[11] == -np.inf).all()
    assert (np.delete(found, 11, axis=0) >= 0).all()


def test_similarity_bits_depend_on_the_two_rows_only():
    for d in (1, 3, 7, 24, 128, 129, 384, 1025):
        left, right = unit_rows(300, d, 0), unit_rows(300, d, 1)
        together = paired_similarity(left, right)
        alone = [paired_similarity(left[i : i + 1], right[i : i + 1])[0] for i in range(300)]
        rows = np.arange(300)
        strided = paired_similarity(np.asfortranarray(left), np.repeat(right, 2, axis=0)[::2])
        assert together.tolist() == alone == strided.tolist()
        assert together.tolist() == similarities_at(left, right, rows, rows).tolist()
        exact = np.einsum("nd,nd->n", left.astype(np.longdouble), right.astype(np.longdouble))
        assert np.abs(together - exact).max() <= 2.0**-24


def test_float32_products_stay_within_the_rounding_bound():
    for d in (8, 64, 768):
        left, right = unit_rows(200, d, 0), 3 * unit_rows(300, d, 1)
        error = np.abs(left @ right.T - left.astype(np.float64) @ right.T.astype(np.float64))
        assert (error.max(axis=1) <= rounding_bound(left, right)).all()
        assert rounding_bound(left, right).max() < 4 * d * 2.0**-24 + 1e-5


def clustered_rows(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = unit_rows(60, d, 0)[rng.integers(0, 60, n)] + 0.1 * rng.normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_approximate_search_reports_its_true_recall_and_exact_similarities():
    pool, queries = clustered_rows(3000, 32, 1), clustered_rows(80, 32, 2)
    indices = np.arange(3000) + 7
    index = train_index(pool[:2000], cells=30, code_bytes=8)
    exact = top_k(queries, pool, indices, 5)
    recalls = []
    for probes in (1, 4, 30):
        similarities, found, recall = approximate_top_k(
            queries, pool, indices, 5, index, Approximation(probes, audit=80)
        )
        shared = sum(len(set(a) & set(b)) for a, b in zip(found, exact[1], strict=True))
        assert recall == pytest.approx(shared / exact[1].size)
        assert index.ntotal == 0
        for row in range(80):
            expected = paired_similarity(np.repeat(queries[row : row + 1], 5, 0), pool[found[row] - 7])
            assert np.array_equal(similarities[row], expected)
        recalls.append(recall)
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.9


def test_approximate_search_over_everything_is_exact():
    pool, queries = clustered_rows(400, 16, 1), clustered_rows(9, 16, 2)
    pool[5] = np.nan
    index = train_index(np.delete(pool, 5, 0), cells=4, code_bytes=4)
    similarities, found, recall = approximate_top_k(queries, pool, np.arange(400), 40, index, Approximation(4))
    assert recall == 1
    assert same((similarities, found), top_k(queries, pool, np.arange(400), 40))


def test_an_index_that_cannot_be_trained_is_refused():
    for rows, cells, code_bytes in ((400, 4, 3), (400, 401, 4), (200, 4, 4)):
        with pytest.raises(ValueError, match="cannot train"):
            train_index(unit_rows(rows, 16, 0), cells, code_bytes)


class CountedResources:
    """A stand-in for the scratch memory of a GPU that counts how often it is taken."""

    made = 0

    def __init__(self):
        CountedResources.made += 1


def test_all_blocks_share_the_scratch_memory_of_the_gpu(monkeypatch):
    monkeypatch.setattr(faiss, "StandardGpuResources", CountedResources, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", lambda resources, *given, **metric: faiss.knn(*given, **metric))
    monkeypatch.setattr(CountedResources, "made", 0)
    search._gpu_resources.cache_clear()
    queries, pool = unit_rows(7, 16, 1), unit_rows(500, 16, 2)
    blocks = np.array_split(np.arange(500), 5)
    partials = [top_k(queries, pool[rows], rows, 3, gpu=True) for rows in blocks]
    search._gpu_resources.cache_clear()
    assert CountedResources.made == 1
    assert same(merge_top_k(partials, 3), top_k(queries, pool, np.arange(500), 3))


def test_a_search_on_a_gpu_without_its_build_of_faiss_says_what_to_install(monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(UserError, match=r"pip install 'granary-data\[gpu\]'"):
        top_k(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.arange(2), 1, gpu=True)
