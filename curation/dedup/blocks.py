"""Blocks of rows made ready for the join: scaled, rotated, cut to the leading directions that pairs are pruned by.

The names are those of the bound in `granary.curation.dedup.join`.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float32]

UNIT_TOLERANCE = 1e-3  # float16 storage moves a norm by 5e-4
WIDENED = 1024  # rows held in float64 at a time
PREFIXES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CANDIDATE_COST = 60_000  # exact scoring of one pair, in multiply-adds of the pruning product; measured


@dataclass(frozen=True)
class Block:
    """Rows made ready to be joined; see `prepare`.

    Args:
        vectors: (n, d) float32.
        heads: (n, p + 1) in the type of the pruning product: a and rho of the bound.
        projection: (d, p) float32.
        kappa: at least ||P'P - I||.
        rounding: at least |h - a| for every row.
        head_norm: at least |A| for every row.
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


def choose_prefix(
    sample: ArrayLike, rotation: ArrayLike, threshold: float, *, rows: int = 1024, compared: float = 1.0
) -> int:
    """Choose how many leading directions prune best at a threshold; the edges do not depend on it.

    The cost of a prefix is its length plus the exact scoring of the share of pairs that its bound leaves.

    Args:
        sample: (n, d) float32 unit rows.
        rotation: (d, d) float32 from `fit_rotation`.
        threshold: of the join.
        rows: of the sample that are used, evenly spaced.
        compared: share of all pairs that are compared, where those are the pairs of near rows.

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
        share = max(0, left) / max(1, len(picked) * (len(picked) - 1))
        cost = prefix + CANDIDATE_COST * share / compared
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
