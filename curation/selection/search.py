"""Exact top-k search by inner product, block by block, and an approximate search with its recall measured."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.errors import UserError
from granary.curation.store.sampling import bounded_sample

if TYPE_CHECKING:
    import faiss

TopK = tuple[NDArray[np.float32], NDArray[np.int64]]
CHUNK = 1 << 20  # float64 products held at a time
_one_search = threading.Lock()  # threads cannot share the resources of a GPU at the same time


def paired_similarity(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner product of row i with row i, by one fixed formula: its bits depend on the two rows alone.

    Products of float32 are exact in float64; their sum runs in the order of the components.

    Args:
        left: (m, d) float32.
        right: (m, d) float32.

    Returns:
        (m,) float32.
    """
    products = np.multiply(left, right, dtype=np.float64, order="C")
    return products.sum(axis=1).astype(np.float32)


def similarities_at(
    queries: NDArray[np.float32],
    block: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.float32]:
    """`paired_similarity` of queries[rows] and block[columns], in bounded memory."""
    similarities = np.empty(len(rows), np.float32)
    step = max(1, CHUNK // max(1, queries.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        similarities[part] = paired_similarity(queries[rows[part]], block[columns[part]])
    return similarities


def rounding_bound(queries: NDArray[np.float32], block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bound the error of a float32 inner product of each query with any row, in any order of summation.

    gamma_d |q| |x| with gamma_d = d u / (1 - d u), u = 2^-24 (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1), and 4 u |q| |x| for storing values and norms in float32.

    Args:
        queries: (q, d) float32.
        block: (n, d) float32.

    Returns:
        (q,) float32.
    """
    unit, d = 2.0**-24, queries.shape[1]
    longest = np.linalg.norm(block, axis=1).max(initial=0.0)
    return np.float32(d * unit / (1 - d * unit) + 4 * unit) * np.linalg.norm(queries, axis=1) * longest


def top_k(
    queries: NDArray[np.float32],
    block: NDArray[np.float32],
    indices: NDArray[np.int64],
    k: int,
    gpu: bool = False,
    margin: int = 8,
) -> TopK:
    """Find the k rows of a block with the largest inner product with each query, exactly.

    Faiss proposes candidates in float32; all that rounding could place among the best k are re-scored by
    `paired_similarity`. A query with more near-ties than the margin holds is searched again over the whole
    block. So the answer, ordered by (similarity descending, index ascending), does not depend on the shape of
    the block, the threads or the device. Rows that are not finite are never found.

    Args:
        queries: (q, d) float32.
        block: (n, d) float32.
        indices: (n,) int64, distinct, >= 0: place of each row in the pool.
        k: how many to find, >= 1.
        gpu: search on the first GPU; needs a GPU build of Faiss.
        margin: candidates fetched beyond k; changes the speed only.

    Returns:
        similarities (q, k) float32 and indices (q, k) int64; where fewer than k rows exist, -inf and -1.
    """
    block, indices = _finite_rows(block, indices)
    queries = np.ascontiguousarray(queries, np.float32)
    n, fetched = len(block), min(k + margin, len(block))
    if not n or not len(queries):
        return _padding(len(queries), k)
    rough, nearest = _candidates(queries, block, fetched, gpu)
    slack = 2 * rounding_bound(queries, block)
    near = rough >= (rough[:, min(k, n) - 1] - slack)[:, None]  # (q, fetched); all false for a NaN query
    crowded = np.flatnonzero(near[:, -1]) if fetched < n else np.empty(0, np.int64)
    near[crowded] = False
    rows, slots = np.nonzero(near)
    similarities, images = _padding(len(queries), fetched)
    similarities[rows, slots] = similarities_at(queries, block, rows, nearest[rows, slots])
    images[rows, slots] = indices[nearest[rows, slots]]
    similarities, images = best_k(similarities, images, k)
    for row in crowded:
        similarities[row], images[row] = _search_whole_block(queries[row], block, indices, k, slack[row])
    return similarities, images


def _search_whole_block(
    query: NDArray[np.float32], block: NDArray[np.float32], indices: NDArray[np.int64], k: int, slack: float
) -> TopK:
    rough = block @ query
    columns = np.flatnonzero(rough >= np.partition(rough, len(rough) - k)[len(rough) - k] - slack)
    similarities = similarities_at(query[None], block, np.zeros_like(columns), columns)
    best, images = best_k(similarities[None], indices[columns][None], k)
    return best[0], images[0]


def _candidates(
    queries: NDArray[np.float32], block: NDArray[np.float32], k: int, gpu: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import faiss

    if not gpu:
        return faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    with _one_search:
        return faiss.knn_gpu(_gpu_resources(), queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)


def has_gpu() -> bool:
    """Say whether this Faiss can search on a GPU of this machine."""
    import faiss

    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


@functools.cache  # they hold scratch memory of the GPU, which is slow to get
def _gpu_resources() -> faiss.StandardGpuResources:
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        raise UserError(
            "the search is set to run on a GPU, which needs a GPU build of Faiss; run: pip install 'granary-data[gpu]'"
        )
    return faiss.StandardGpuResources()


def _finite_rows(block: ArrayLike, indices: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    block, indices = np.ascontiguousarray(block, np.float32), np.asarray(indices, np.int64)
    finite = np.isfinite(block).all(axis=1)
    return (block, indices) if finite.all() else (block[finite], indices[finite])


def _padding(q: int, k: int) -> TopK:
    return np.full((q, k), -np.inf, np.float32), np.full((q, k), -1, np.int64)


def best_k(similarities: NDArray[np.float32], indices: NDArray[np.int64], k: int) -> TopK:
    """Sort each row by (similarity descending, index ascending) and keep k, padded with -inf and -1.

    Args:
        similarities: (q, m) float32.
        indices: (q, m) int64.
        k: how many to keep.

    Returns:
        similarities (q, k) float32 and indices (q, k) int64.
    """
    order = np.lexsort((indices, -similarities), axis=1)[:, :k]
    kept = np.take_along_axis(similarities, order, 1), np.take_along_axis(indices, order, 1)
    padding = _padding(len(similarities), k - order.shape[1])
    return np.hstack([kept[0], padding[0]]), np.hstack([kept[1], padding[1]])


def merge_top_k(partials: Sequence[TopK], k: int) -> TopK:
    """Merge what `top_k` found for the same queries in disjoint blocks; associative and commutative.

    Args:
        partials: pairs of similarities (q, k_i) float32 and indices (q, k_i) int64, at least one.
        k: how many to keep.

    Returns:
        similarities (q, k) float32 and indices (q, k) int64, as from one block.
    """
    return best_k(np.hstack([part[0] for part in partials]), np.hstack([part[1] for part in partials]), k)


def train_index(sample: NDArray[np.float32], cells: int, code_bytes: int, seed: int = 0) -> faiss.IndexIVFPQ:
    """Train an empty inverted-file index with product quantisation, for `approximate_top_k`.

    Args:
        sample: (s, d) float32, a bounded sample of the pool; about 40 rows per cell or more.
        cells: lists of the inverted file; about the square root of a block's rows.
        code_bytes: bytes of the code of a row; divides d.
        seed: seed of both k-means.

    Returns:
        The index; `faiss.serialize_index` turns it into an array.

    Raises:
        ValueError: code_bytes does not divide d, or the sample is smaller than cells or than 256.
    """
    import faiss

    s, d = sample.shape
    if d % code_bytes or s < max(cells, 256):
        raise ValueError(f"{s} x {d} vectors cannot train {cells} cells with codes of {code_bytes} bytes")
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(d), d, cells, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = seed % 2**31
    index.train(np.ascontiguousarray(sample, np.float32))
    return index


@dataclasses.dataclass(frozen=True)
class Approximation:
    """How an approximate search looks, and how its recall is measured.

    Args:
        probes: lists searched for each query.
        oversample: candidates for each of the k.
        audit: queries, chosen by hash, that are also searched by `top_k`.
        seed: seed of the run.
    """

    probes: int = 16
    oversample: int = 10
    audit: int = 100
    seed: int = 0


def approximate_top_k(
    queries: NDArray[np.float32],
    block: NDArray[np.float32],
    indices: NDArray[np.int64],
    k: int,
    index: faiss.Index,
    options: Approximation,
) -> tuple[NDArray[np.float32], NDArray[np.int64], float]:
    """Find most of the k best rows of a large block, and say how many.

    The index proposes `options.oversample` k candidates, which are re-scored exactly: no similarity is approximate.

    Args:
        queries: (q, d) float32.
        block: (n, d) float32.
        indices: (n,) int64, distinct, >= 0: place of each row in the pool.
        k: how many to find.
        index: from `train_index`; left as it is.
        options: how it is searched.

    Returns:
        similarities (q, k) float32, indices (q, k) int64 as from `top_k`, and the recall: the share of the
        exact answers to the audited queries that was found (nan when there is none).
    """
    import faiss

    block, indices = _finite_rows(block, indices)
    queries = np.ascontiguousarray(queries, np.float32)
    filled: Any = faiss.clone_index(index)  # Faiss types it as any index
    filled.nprobe = options.probes
    filled.add(block)
    _, nearest = filled.search(queries, k * options.oversample)
    rows, slots = np.nonzero(nearest >= 0)
    similarities, images = _padding(*nearest.shape)
    similarities[rows, slots] = similarities_at(queries, block, rows, nearest[rows, slots])
    images[rows, slots] = indices[nearest[rows, slots]]
    similarities, images = best_k(similarities, images, k)
    audited = bounded_sample(np.arange(len(queries)), options.audit, options.seed, "recall audit")
    _, exact = top_k(queries[audited], block, indices, k)
    hits = (exact[:, :, None] == images[audited][:, None, :]).any(axis=2)[exact >= 0]
    return similarities, images, float(hits.mean()) if len(hits) else float("nan")
