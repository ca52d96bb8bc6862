"""The threshold join: every pair of rows whose inner product is above a threshold, exactly.

Blocks of rows are prepared once and joined pair by pair. A matrix product in a few leading principal
directions bounds every inner product from above; the few pairs that the bound leaves are scored exactly.

The similarity of two rows is their exact inner product (no rounding in the sum), rounded to float64 and then
to float32; an edge is `similarity > float32(threshold)`. So it depends on the two rows alone: not on blocks,
threads, BLAS or device, and a pair at the threshold as float32 knows it is no edge.

The bound. P (d, p) holds the leading columns of the rotation, kappa >= ||P'P - I||, P = Q H its polar form
(Q orthonormal, H^2 = P'P), h = P'x, and x = Q Q'x + e. With Q'x = H^-1 h and Cauchy-Schwarz,

    x.y  =  h_x.H^-2 h_y + e_x.e_y  <=  h_x.h_y + kappa/(1 - kappa) |h_x| |h_y| + |e_x| |e_y|
    |e|^2  =  |x|^2 - |Q'x|^2  <=  |x|^2 - |h|^2 / (1 + kappa)

Kept are a, which is h rounded to the type of the product, and rho, the bound on |e| rounded up. With
eps = |h - a|, measured in float64 on every row, and the head A = [a, rho] of p + 1 numbers,

    x.y  <=  A_x.A_y + eps_x |a_y| + eps_y |a_x| + eps_x eps_y + kappa/(1 - kappa) |h_x| |h_y|

A sum of p + 1 products in float32, in any order, is off by at most (p + 1) u |A_x| |A_y|; u = 2^-22, not
2^-24, allows for tensor cores, which truncate. Rounding the result to the type of the product is monotone, so
comparing with >= against the cutoff rounded down loses nothing. What is left, float64 arithmetic on norms of
one, is far below the 1e-9 that is added.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")

ROUNDOFF = 2.0**-22  # of one addition in float32, truncating
UNIT_TOLERANCE = 1e-3  # float16 storage moves a norm by 5e-4
CPU_TILE, CUDA_TILE = 1024, 16384  # rows of a tile: its products stay near the core, or fill a GPU
WIDENED = 1024  # rows held in float64 at a time
SCORED_AT_ONCE = 1 << 22  # float64 numbers held for one batch of exact inner products
DENSE = 64  # a gathered pair costs as much as this many of a matrix product
PREFIXES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CANDIDATE_COST = 60_000  # exact scoring of one pair, in multiply-adds of the pruning product; measured


class Edges(NamedTuple):
    """Pairs and their similarities: i, j (m,) int64 and similarity (m,) float32."""

    i: Indices
    j: Indices
    similarity: Floats


@dataclass(frozen=True)
class Block:
    """Rows made ready to be joined; see `prepare`.

    vectors (n, d) float32; heads (n, p + 1) in the type of the pruning product: a and rho of the bound;
    projection (d, p) float32; kappa >= ||P'P - I||; rounding >= |h - a| and head_norm >= |A| for every row.
    """

    vectors: Tensor
    heads: Tensor
    projection: Tensor
    kappa: float
    rounding: float
    head_norm: float

    def __len__(self) -> int:
        return len(self.vectors)


def unit_rows(vectors: ArrayLike) -> Floats:
    """Scale rows to length one, in float64, and round them to float32.

    Args:
        vectors: (n, d), any real type.

    Returns:
        (n, d) float32; rows of zeros stay zero and resemble nothing.

    Raises:
        ValueError: the array is not of two dimensions, or a row has NaN or infinity; it names the row.
    """
    array = np.asarray(vectors)
    if array.ndim != 2:
        raise ValueError(f"vectors must be of shape (n, d), not {array.shape}")
    unit = np.empty(array.shape, np.float32)
    for start in range(0, len(array), WIDENED):
        rows = array[start : start + WIDENED].astype(np.float64)
        squared = np.einsum("nd,nd->n", rows, rows)
        if not np.isfinite(squared).all():
            bad = start + int(np.isfinite(squared).argmin())
            raise ValueError(f"row {bad} of the vectors is not finite")
        unit[start : start + WIDENED] = rows / np.sqrt(np.where(squared > 0, squared, 1))[:, None]
    return unit


def fit_rotation(sample: ArrayLike, *, rows: int = 4096, seed: int = 0) -> Floats:
    """Find the rotation whose leading columns hold most of the energy of the rows (uncentred PCA).

    Uncentred, because a shift would change inner products.

    Args:
        sample: (n, d) float32.
        rows: at most so many of them are used.
        seed: chooses them.

    Returns:
        (d, d) float32, orthogonal to float32 accuracy: rows @ rotation.
    """
    array = np.asarray(sample, np.float32)
    if len(array) > rows:
        array = array[np.sort(np.random.default_rng(seed).choice(len(array), rows, replace=False))]
    moments = array.T.astype(np.float64) @ array.astype(np.float64)
    directions = np.linalg.eigh(moments)[1][:, ::-1]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], axis=0)
    return np.ascontiguousarray(directions * np.where(largest < 0, -1, 1), np.float32)


def choose_prefix(sample: ArrayLike, rotation: ArrayLike, threshold: float, *, rows: int = 1024) -> int:
    """Choose how many leading directions prune best at a threshold; the edges do not depend on it.

    The cost of a prefix is its length plus the exact scoring of the share of pairs that its bound leaves.

    Args:
        sample: (n, d) float32 unit rows.
        rotation: (d, d) float32 from `fit_rotation`.
        threshold: of the join.
        rows: of the sample that are used, evenly spaced.

    Returns:
        The number of directions, in 1..d.
    """
    vectors = np.asarray(sample, np.float32)
    picked = torch.from_numpy(vectors[np.unique(np.linspace(0, len(vectors) - 1, rows).astype(int))])
    rotated = picked @ torch.from_numpy(np.asarray(rotation, np.float32))
    inner = torch.zeros(len(picked), len(picked))
    best, start, size = (math.inf, rotated.shape[1]), 0, rotated.shape[1]
    for prefix in sorted({min(p, size) for p in PREFIXES} | {size}):
        head = rotated[:, start:prefix]
        inner += head @ head.T
        rest = rotated[:, prefix:].norm(dim=1)
        left = (torch.addr(inner, rest, rest) > threshold).sum().item() - len(picked)
        cost = prefix + CANDIDATE_COST * max(0, left) / max(1, len(picked) * (len(picked) - 1))
        best, start = min(best, (cost, prefix)), prefix
        if prefix > best[0]:
            break
    return best[1]


@functools.lru_cache
def pruning_dtype(device: str) -> torch.dtype:
    """Choose the type of the pruning product: float16 on a GPU, else the faster of float32 and bfloat16.

    bfloat16 wins where the processor multiplies it (AMX, AVX512-BF16) and loses ten times elsewhere, so both
    are timed, once per process. The edges do not depend on the choice.
    """
    if torch.device(device).type == "cuda":
        return torch.float16
    heads = torch.ones(1024, 65)
    return min((torch.float32, torch.bfloat16), key=lambda dtype: _seconds(heads.to(dtype)))


def _seconds(heads: Tensor) -> float:
    def once() -> float:
        start = time.perf_counter()
        torch.mm(heads, heads.T)
        return time.perf_counter() - start

    return min(once() for _ in range(4))


def prepare(
    vectors: Floats,
    rotation: ArrayLike,
    prefix: int = 64,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Block:
    """Compute what a block brings to every pair of blocks it is part of.

    Args:
        vectors: (n, d) float32 unit rows, see `unit_rows`; zero rows are allowed.
        rotation: (d, d) float32 or its leading columns, from `fit_rotation`, the same for all blocks.
        prefix: directions kept, at most d.
        device: of torch.
        dtype: of the pruning product; by default `pruning_dtype(device)`.

    Raises:
        ValueError: a row is not finite or not of length one (it names the row), or the rotation is not orthogonal.
    """
    dtype = dtype or pruning_dtype(device)
    projection = torch.as_tensor(np.asarray(rotation, np.float32)[:, :prefix]).to(device)
    rows = torch.as_tensor(np.ascontiguousarray(vectors, np.float32)).to(device)
    if rows.ndim != 2 or rows.shape[1] != len(projection):
        raise ValueError(f"vectors {tuple(rows.shape)} do not fit a rotation {tuple(projection.shape)}")
    wide = projection.double()
    kappa = float((wide.T @ wide - torch.eye(wide.shape[1], device=device)).norm()) + 1e-12
    if not kappa < 0.1:
        raise ValueError(f"the rotation is not orthogonal: its columns are off by {kappa:.3g}")
    heads = torch.empty(len(rows), wide.shape[1] + 1, dtype=dtype, device=device)
    rounding = head_norm = 0.0
    for start in range(0, len(rows), WIDENED):
        part = rows[start : start + WIDENED].double()
        _require_unit(part, start)
        head, error = _heads(part, wide, kappa, dtype)
        heads[start : start + WIDENED] = head
        rounding = max(rounding, error)
        head_norm = max(head_norm, float(head.double().norm(dim=1).max()))
    return Block(rows, heads, projection, kappa, rounding, head_norm)


def _require_unit(rows: Tensor, start: int) -> None:
    norms = rows.norm(dim=1)
    good = ((norms - 1).abs() <= UNIT_TOLERANCE) | (norms == 0)
    if not bool(good.all()):
        bad = int(good.int().argmin())
        raise ValueError(f"row {start + bad} of the vectors has length {float(norms[bad]):.6g}, not 1")


def _heads(rows: Tensor, projection: Tensor, kappa: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return the heads A (n, p + 1) and the largest |h - a| of float64 rows (n, d)."""
    h = rows @ projection
    a = h.to(dtype)
    rest = ((rows * rows).sum(1) - (h * h).sum(1) / (1 + kappa)).clamp_min(0).sqrt() + 1e-12
    rho = (rest * (1 + 2 * torch.finfo(dtype).eps) + torch.finfo(dtype).tiny).to(dtype)
    return torch.cat([a, rho[:, None]], dim=1), float((h - a.double()).norm(dim=1).max())


def _cutoff(left: Block, right: Block, threshold: float) -> float:
    """Return the value, in the type of the heads, that A_x.A_y as computed reaches for every edge."""
    ends = left.head_norm * right.head_norm
    slack = left.rounding * right.head_norm + right.rounding * left.head_norm + left.rounding * right.rounding
    kappa = left.kappa / (1 - left.kappa)
    slack += kappa * (left.head_norm + left.rounding) * (right.head_norm + right.rounding)
    slack += left.heads.shape[1] * ROUNDOFF * ends + 1e-9
    if left.heads.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        slack += 2.0**-6 * ends  # float32 products may then round their inputs to bfloat16
    cutoff = float(np.float32(threshold)) - slack
    rounded = torch.tensor(cutoff, dtype=left.heads.dtype)
    if float(rounded) > cutoff:
        rounded = torch.nextafter(rounded, torch.tensor(-math.inf, dtype=rounded.dtype))
    return float(rounded)


def join_blocks(left: Block, right: Block | None, threshold: float, *, tile: int | None = None) -> Iterator[Edges]:
    """Find the pairs of rows of two blocks, or of one block, whose similarity is above a threshold.

    Edges come tile by tile, i local to left and j to right, sorted by (i, j) inside a tile, so that a caller can
    contract them and stay bounded.

    Args:
        left: a block.
        right: another, prepared with the same rotation and prefix; None joins left with itself, i < j.
        threshold: in [-1, 1].
        tile: rows of each side taken at once.

    Raises:
        ValueError: the threshold is out of range, or the blocks were prepared differently.
    """
    other = left if right is None else right
    _require_joinable(left, other, threshold)
    size = tile or (CUDA_TILE if left.heads.is_cuda else CPU_TILE)
    cutoff = _cutoff(left, other, threshold)

    def join_tile(corner: tuple[int, int]) -> Edges:
        row, column = corner
        i, j = _candidates(
            left.heads[row : row + size],
            other.heads[column : column + size],
            cutoff,
            upper=right is None and row == column,
        )
        return _score(left.vectors, other.vectors, i + row, j + column, threshold)

    rows, columns = range(0, len(left), size), range(0, len(other), size)
    corners = [(row, column) for row in rows for column in columns if right is not None or row <= column]
    workers = 1 if left.heads.is_cuda else min(torch.get_num_threads(), len(corners))
    yield from (edges for edges in _in_order(join_tile, corners, workers) if len(edges.i))


def _in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Map in threads, results in the order of the items, few of them waiting at any time.

    Each thread computes alone: torch's own threads would meet after every operation.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _require_joinable(left: Block, right: Block, threshold: float) -> None:
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be in [-1, 1], not {threshold}")
    same = left.heads.dtype == right.heads.dtype and torch.equal(left.projection, right.projection)
    if not same:
        raise ValueError("the blocks were prepared with different rotations, prefixes or types")


def _candidates(left: Tensor, right: Tensor, cutoff: float, *, upper: bool) -> tuple[Tensor, Tensor]:
    """Return the places (i, j) of a tile of products that reach the cutoff; upper keeps i < j alone."""
    products = _product(left, right)
    if upper:
        products.masked_fill_(torch.ones_like(products, dtype=torch.bool).tril_(), -math.inf)
    # One pass for the largest of each row is ten times cheaper than a mask of the tile.
    rows = _places(products.amax(dim=1) >= cutoff)
    places = _places((products.index_select(0, rows) >= cutoff).view(-1))
    return rows[places // len(right)], places % len(right)


def _places(mask: Tensor) -> Tensor:
    """Return where a mask (n,) holds; NumPy's search is several times faster than torch's on a CPU."""
    return mask.nonzero().squeeze(1) if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply heads, partial sums in float32: by default a GPU may keep them in the type of the heads."""
    if not left.is_cuda or left.dtype == torch.float32:
        return left @ right.T
    flags = torch.backends.cuda.matmul
    name = f"allow_{'fp16' if left.dtype == torch.float16 else 'bf16'}_reduced_precision_reduction"
    allowed = getattr(flags, name)
    setattr(flags, name, False)
    try:
        return left @ right.T
    finally:
        setattr(flags, name, allowed)


def _score(left: Tensor, right: Tensor, i: Tensor, j: Tensor, threshold: float) -> Edges:
    """Score candidates (i, j) exactly and keep the edges."""
    if not len(i):
        return concatenate([])
    similarity = _similarities(left, right, i, j)
    kept = similarity > np.float32(threshold)
    return Edges(i.cpu().numpy()[kept], j.cpu().numpy()[kept], similarity[kept])


def pair_similarities(left: ArrayLike, right: ArrayLike, i: ArrayLike, j: ArrayLike) -> Floats:
    """Score pairs of rows: the float32 nearest to the exact inner product of left[i] and right[j].

    Args:
        left: (n, d) float32, unit rows.
        right: (n', d) float32, unit rows.
        i: (m,) int, rows of left.
        j: (m,) int, rows of right.

    Returns:
        (m,) float32.
    """
    tensors = [torch.as_tensor(np.asarray(rows, np.float32)) for rows in (left, right)]
    places = [torch.as_tensor(np.asarray(index, np.int64)) for index in (i, j)]
    return _similarities(*tensors, *places)


def _similarities(left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Floats:
    # float64 is off by less than d 2^-52. Where both ends of that interval round to the same float32 the
    # order of summation cannot matter; the rest, about one pair in a million, is summed without error.
    inner, error = _inner_products(left, right, i, j), left.shape[1] * 2.0**-52
    low, high = ((inner + sign * error).float().cpu().numpy() for sign in (-1, 1))
    for k in np.flatnonzero(low != high):
        low[k] = math.fsum((left[i[k]].double() * right[j[k]].double()).tolist())
    return low


def _inner_products(left: Tensor, right: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return left[i].right[j] (m,) in float64: from a product of all rows involved where pairs are dense."""
    if len(i) <= max(1, SCORED_AT_ONCE // 4 // left.shape[1]):
        return left.index_select(0, i).double().mul_(right.index_select(0, j)).sum(1)
    rows, row = torch.unique(i, return_inverse=True)
    columns, column = torch.unique(j, return_inverse=True)
    area = len(rows) * len(columns)
    if area <= min(SCORED_AT_ONCE, DENSE * len(i)):
        return (left[rows].double() @ right[columns].double().T)[row, column]
    halves = (slice(len(i) // 2), slice(len(i) // 2, None))
    return torch.cat([_inner_products(left, right, i[half], j[half]) for half in halves])


def threshold_join(
    vectors: ArrayLike,
    threshold: float,
    *,
    prefix: int | None = None,
    tile: int | None = None,
    device: str = "cpu",
) -> tuple[Indices, Floats]:
    """Find all pairs of rows with a cosine above a threshold.

        >>> import numpy as np
        >>> pairs, similarities = threshold_join(np.array([[1, 0], [0, 2], [3, 0.1]]), 0.9)
        >>> pairs.tolist(), round(float(similarities[0]), 4)
        ([[0, 2]], 0.9994)

    Args:
        vectors: (n, d), any real type and length of rows: they are scaled to length one first, and a row of zeros has
            cosine 0 with all others.
        threshold: in [-1, 1], strict.
        prefix: leading dimensions that pairs are pruned by; for speed alone, by default chosen from the data.
        tile: rows compared at a time; for speed alone.
        device: where the products are made: "cpu", "cuda", "cuda:N".

    Returns:
        pairs (m, 2) int64, i < j, in lexicographic order, and their similarities (m,) float32.

    Raises:
        ValueError: rows are not finite, or the threshold is out of range.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be in [-1, 1], not {threshold}")
    unit = unit_rows(vectors)
    if 0 in unit.shape:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    rotation = fit_rotation(unit)
    block = prepare(unit, rotation, prefix or choose_prefix(unit, rotation, threshold), device=device)
    edges = concatenate(join_blocks(block, None, threshold, tile=tile))
    order = np.lexsort((edges.j, edges.i))
    return np.stack([edges.i, edges.j], axis=1)[order], edges.similarity[order]


def top_k_neighbours(
    queries: Block,
    block: Block | None,
    k: int,
    threshold: float,
    *,
    query_start: int = 0,
    block_start: int = 0,
    tile: int | None = None,
) -> Edges:
    """Find the k nearest rows of a block above a threshold, for every row of another block, or of the same.

    Args:
        queries: a block.
        block: another, prepared with the same rotation and prefix; None: the queries among themselves, without
            themselves.
        k: most neighbours of each query; of equally similar ones those of lowest index.
        threshold: in [-1, 1].
        query_start: global index of the first query.
        block_start: global index of the first row of the block.
        tile: rows of each side taken at once.

    Returns:
        Directed edges, from the query i to its neighbour j, global indices, sorted by (i, -similarity, j).
    """
    best = concatenate([])
    for i, j, similarity in join_blocks(queries, block, threshold, tile=tile):
        edges = Edges(i + query_start, j + (query_start if block is None else block_start), similarity)
        both = [edges, Edges(edges.j, edges.i, similarity)] if block is None else [edges]
        best = merge_top_k([best, *both], k)
    return best


def merge_top_k(parts: Iterable[Edges], k: int) -> Edges:
    """Merge partial neighbours of `top_k_neighbours`, of the same queries in different blocks or not."""
    i, j, similarity = concatenate(parts)
    order = np.lexsort((j, -similarity, i))
    _, first, count = np.unique(i[order], return_index=True, return_counts=True)
    order = order[np.arange(len(order)) - np.repeat(first, count) < k]
    return Edges(i[order], j[order], similarity[order])


def concatenate(parts: Iterable[Edges]) -> Edges:
    """Put edges together, in the order of the parts."""
    empty = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    return Edges(*(np.concatenate(columns) for columns in zip(empty, *parts, strict=True)))
