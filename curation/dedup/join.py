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

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from granary.curation.dedup.blocks import Block, Floats, choose_prefix, fit_rotation, prepare, unit_rows

Indices = NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")

ROUNDOFF = 2.0**-22  # of one addition in float32, truncating
CPU_TILE, CUDA_TILE = 1024, 16384  # rows of a tile: its products stay near the core, or fill a GPU
GROUP_TILE = 1024  # rows of a tile of a group on a CPU
SCORED_AT_ONCE = 1 << 22  # float64 numbers held for one batch of exact inner products
DENSE = 64  # a gathered pair costs as much as this many of a matrix product


class Edges(NamedTuple):
    """Pairs and their similarities: i, j (m,) int64 and similarity (m,) float32."""

    i: Indices
    j: Indices
    similarity: Floats


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


def join_groups(block: Block, groups: Iterable[tuple[Indices, Indices]], threshold: float) -> Iterator[Edges]:
    """Find the pairs above a threshold inside groups of rows of one block, each prepared once whatever its groups.

    Args:
        block: of all the rows.
        groups: of each its members (h,) and its visitors (v,), int64 rows of the block that are all distinct. Every
            member is joined with every other and with every visitor, and visitors are not joined among themselves.
        threshold: in [-1, 1].

    Yields:
        Edges of rows of the block, group by group; a pair that several groups hold comes with each.

    Raises:
        ValueError: the threshold is out of range.
    """
    _require_joinable(block, block, threshold)
    cutoff, size = _cutoff(block, block, threshold), CUDA_TILE if block.heads.is_cuda else GROUP_TILE

    def join_group(group: tuple[Indices, Indices]) -> Edges:
        right = torch.from_numpy(np.concatenate(group)).to(block.heads.device)
        heads, edges, members = block.heads.index_select(0, right), list[Edges](), len(group[0])
        for row in range(0, members, size):
            left = heads[row : min(row + size, members)]
            for column in range(row, len(right), size):
                i, j = _candidates(left, heads[column : column + size], cutoff, upper=row == column)
                edges.append(_score(block.vectors, block.vectors, right[row + i], right[column + j], threshold))
        return concatenate(edges)

    workers = 1 if block.heads.is_cuda else torch.get_num_threads()
    yield from (edges for edges in _in_order(join_group, groups, workers) if len(edges.i))


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
        square = products[:, : len(left)]
        square.masked_fill_(torch.ones_like(square, dtype=torch.bool).tril_(), -math.inf)
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
