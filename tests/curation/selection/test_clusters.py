from __future__ import annotations

import faiss
import numpy as np
import pytest
from sklearn.cluster import KMeans

from granary.curation.selection.clusters import LloydSums, assign, train_kmeans
from granary.curation.selection.search import paired_similarity


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sums_of(vectors: np.ndarray, centroids: np.ndarray) -> LloydSums:
    return LloydSums(*centroids.shape).add(vectors, *assign(vectors, centroids))


def state(sums: LloydSums) -> bytes:
    return b"".join(part.tobytes() for part in (sums.sums, sums.counts, sums.farthest, sums.lowest))


def test_one_lloyd_pass_is_one_of_scikit_learn():
    vectors, centroids = unit_rows(3000, 20, 0), unit_rows(40, 20, 1)
    ours = sums_of(vectors, centroids).finish(centroids, spherical=False)
    theirs = KMeans(40, init=centroids, n_init=1, max_iter=1, tol=0).fit(vectors.astype(np.float64))
    assert np.abs(ours - theirs.cluster_centers_).max() < 1e-5


def test_spherical_centroids_are_the_unit_means():
    vectors, centroids = unit_rows(500, 12, 0), unit_rows(9, 12, 1)
    cells = np.argmax(vectors.astype(np.float64) @ centroids.T.astype(np.float64), axis=1)
    means = np.stack([vectors[cells == cell].mean(0, dtype=np.float64) for cell in range(9)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(sums_of(vectors, centroids).finish(centroids) - expected).max() < 1e-6


@pytest.mark.parametrize("blocks", [2, 7, 60])
def test_distributed_is_single_process_to_the_bit(blocks):
    vectors, centroids = unit_rows(900, 16, 0), unit_rows(30, 16, 1)
    centroids[:, -1] = 0
    vectors[450:] = vectors[:450]
    vectors[450:, -1] *= -1  # mirrored: as far from every centroid, yet other vectors
    vectors[50:90] = vectors[3]
    whole = sums_of(vectors, centroids)
    order = np.random.default_rng(blocks).permutation(900)
    parts = [sums_of(vectors[part], centroids) for part in np.array_split(order, blocks)]
    while len(parts) > 1:
        parts.append(parts.pop().merge(parts.pop(0)))
    assert state(parts[0]) == state(whole)
    assert parts[0].finish(centroids).tobytes() == whole.finish(centroids).tobytes()


def test_the_centroid_of_a_million_copies_is_the_vector():
    vector = unit_rows(1, 8, 3)
    sums, part = LloydSums(1, 8), np.repeat(vector, 100_000, axis=0)
    for _ in range(10):
        sums.add(part, np.zeros(100_000, np.int32), np.ones(100_000, np.float32))
    assert sums.counts.tolist() == [1_000_000]
    assert np.abs(sums.finish(vector, spherical=False) - vector).max() < 1e-7


def test_empty_cells_take_the_farthest_members_of_the_largest_cells():
    vectors = unit_rows(300, 6, 0)
    vectors[:, 0] = np.abs(vectors[:, 0]) + 0.2
    vectors[:20, 0] *= -1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    axis = np.eye(6, dtype=np.float32)[:1]
    centroids = np.concatenate([axis, -axis, axis, axis, axis])  # equal: the first wins, 3 are empty
    cells, similarities = assign(vectors, centroids)
    assert np.bincount(cells, minlength=5).tolist() == [280, 20, 0, 0, 0]
    farthest = [np.flatnonzero(cells == cell)[np.argmin(similarities[cells == cell])] for cell in (0, 1)]
    result = LloydSums(5, 6).add(vectors, cells, similarities).finish(centroids, spherical=False)
    assert np.allclose(result[2], vectors[farthest[0]], atol=1e-7)
    assert np.allclose(result[3], vectors[farthest[1]], atol=1e-7)
    assert np.array_equal(result[4], centroids[4])
    rest = np.delete(vectors, farthest, axis=0)
    assert np.allclose(result[0], rest[np.delete(cells, farthest) == 0].mean(0), atol=1e-6)


def test_a_cell_of_copies_gives_nothing_away():
    vectors = np.repeat(unit_rows(1, 6, 0), 50, axis=0)
    centroids = unit_rows(3, 6, 1)
    result = sums_of(vectors, centroids).finish(centroids)
    filled = assign(vectors[:1], centroids)[0][0]
    assert np.allclose(result[filled], vectors[0], atol=1e-7)
    assert np.array_equal(np.delete(result, filled, 0), np.delete(centroids, filled, 0))


def test_sums_refuse_what_fixed_point_cannot_hold():
    for bad in (1.5, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"\[-1, 1\]"):
            LloydSums(1, 2).add(np.array([[0, bad]], np.float32), np.zeros(1, int), np.zeros(1, np.float32))


@pytest.mark.parametrize("spherical", [True, False])
def test_assignment_is_brute_force_with_ties_to_the_first_cell(spherical):
    vectors, centroids = unit_rows(400, 10, 0), unit_rows(50, 10, 1)
    if not spherical:
        centroids *= np.linspace(0.2, 2, 50, dtype=np.float32)[:, None]
    centroids[20:45] = centroids[5]
    cells, similarities = assign(vectors, centroids, spherical)
    products = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    distances = np.square(vectors[:, None].astype(np.float64) - centroids).sum(-1)
    assert np.array_equal(cells, np.argmax(products, 1) if spherical else np.argmin(distances, 1))
    assert cells.dtype == np.int32
    assert not np.isin(np.arange(20, 45), cells).any()
    assert np.array_equal(similarities, paired_similarity(vectors, centroids[cells]))
    halves = [assign(part, centroids, spherical) for part in (vectors[:1], vectors[1:])]
    assert np.concatenate([half[1] for half in halves]).tobytes() == similarities.tobytes()


@pytest.mark.parametrize("spherical", [True, False])
def test_a_vector_that_is_not_finite_has_no_cell(spherical):
    vectors, centroids = unit_rows(4, 5, 0), unit_rows(3, 5, 1)
    vectors[2, 1] = np.nan
    cells, similarities = assign(vectors, centroids, spherical)
    assert (cells >= 0).tolist() == [True, True, False, True]
    assert similarities[2] == -np.inf
    assert LloydSums(3, 5).add(vectors, cells, similarities).counts.sum() == 3


def test_training_is_independent_of_order_and_better_than_random_centroids():
    sample = unit_rows(2000, 16, 0)
    centroids = train_kmeans(sample, 50, seed=4)
    again = train_kmeans(sample[np.random.default_rng(0).permutation(2000)], 50, seed=4)
    assert centroids.shape == (50, 16)
    assert centroids.tobytes() == again.tobytes()
    assert centroids.tobytes() != train_kmeans(sample, 50, seed=5).tobytes()
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    assert assign(sample, centroids)[1].mean() > assign(sample, sample[:50])[1].mean() + 0.05


def test_training_does_not_depend_on_threads():
    sample, threads, found = unit_rows(3000, 24, 0), faiss.omp_get_max_threads(), set()
    try:
        for count in (1, 2, 3):
            faiss.omp_set_num_threads(count)
            found.add(train_kmeans(sample, 60, seed=1).tobytes())
    finally:
        faiss.omp_set_num_threads(threads)
    assert len(found) == 1


def test_training_finds_planted_groups():
    centres = unit_rows(10, 32, 0)
    sample = np.repeat(centres, 60, axis=0) + 0.03 * np.random.default_rng(1).normal(size=(600, 32))
    sample = (sample / np.linalg.norm(sample, axis=1, keepdims=True)).astype(np.float32)
    found = train_kmeans(sample, 40, seed=0)
    assert assign(centres, found)[1].min() > 0.99


def test_no_more_centroids_than_distinct_rows():
    distinct = unit_rows(3, 8, 0)
    sample = np.repeat(distinct, [5, 1, 30], axis=0)
    assert sorted(map(bytes, train_kmeans(sample, 10, seed=0))) == sorted(map(bytes, distinct))
    assert train_kmeans(sample, 2, seed=0).shape == (2, 8)
    for bad in (np.empty((0, 8), np.float32), np.full((3, 8), np.nan, np.float32)):
        with pytest.raises(ValueError, match="finite"):
            train_kmeans(bad, 2, seed=0)
