"""Losses that keep the dimensions of an embedding alive and different: Barlow Twins, VICReg and W-MSE.

Shapes: n pictures of this process, N of all; K dimensions of the projector's output; z and z' the two views, row i of
both is picture i. Means, variances and correlations are those of all N, with gradients, so that several processes
compute what one would. All is computed in float32 or above.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.losses.processes import gathered

BATCH_NORM_EPS = 1e-5  # of torch, by which the authors of Barlow Twins standardise
VARIANCE_EPS = 1e-4


class BarlowTerms(NamedTuple):
    """The two sums of Barlow Twins, scalars: invariance over the diagonal, redundancy over all other entries."""

    invariance: Tensor
    redundancy: Tensor


class VICRegTerms(NamedTuple):
    """The three terms of VICReg, scalars without their weights."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def barlow_terms(first: Tensor, second: Tensor) -> BarlowTerms:
    """Return the terms of Barlow Twins (arXiv 2103.03230, equation 1): sum_i (1 - C_ii)^2 and sum_{i != j} C_ij^2.

    C (K, K) is the correlation of dimension i of z with j of z' over the batch; each dimension is standardised by its
    mean and biased variance, to which 1e-5 is added, as in the authors' code.

    Args:
        first, second: (n, K), z and z'.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = [_standardised(view) for view in _everyone(first, second)]
        correlation = views[0].T @ views[1] / len(views[0])
        return BarlowTerms((1 - correlation.diagonal()).square().sum(), off_diagonal(correlation).square().sum())


def vicreg_terms(first: Tensor, second: Tensor) -> VICRegTerms:
    """Return the terms of VICReg (arXiv 2105.04906, equations 1, 2, 4 and 5).

    Invariance is the mean of (z - z')^2 over all N K numbers. Variance is the mean over dimensions of
    max(0, 1 - sqrt(Var + 1e-4)), and over both views; covariance is the sum of the squared covariances of two different
    dimensions, divided by K, and summed over both views. Var and covariances are divided by N - 1.

    Args:
        first, second: (n, K), z and z'.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = _everyone(first, second)
        spread, redundancy = zip(*(_spread_and_redundancy(view) for view in (first, second)), strict=True)
        return VICRegTerms(F.mse_loss(first, second), (spread[0] + spread[1]) / 2, redundancy[0] + redundancy[1])


def _spread_and_redundancy(view: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance and the covariance term of a view (N, K)."""
    centred = view - view.mean(dim=0)
    covariance = centred.T @ centred / (len(view) - 1)
    spread = F.relu(1 - (covariance.diagonal() + VARIANCE_EPS).sqrt()).mean()
    return spread, off_diagonal(covariance).square().sum() / view.shape[1]


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries beside the diagonal of a matrix: (K, K) -> (K - 1, K), a view, row after row.

    Args:
        matrix: square, contiguous.
    """
    # without the first entry, each run of K + 1 ends with one of the diagonal
    return matrix.flatten()[1:].view(len(matrix) - 1, len(matrix) + 1)[:, :-1]


def sub_batches(count: int, size: int, iterations: int, generator: np.random.Generator) -> Tensor:
    """Return pictures in random sub-batches, (I, S, size) int64 numbers below `count`; what is left over is left out.

    Args:
        count: pictures.
        size: of a sub-batch.
        iterations: I, how often they are cut anew.
        generator: of this step, the same on all processes.

    Raises:
        ValueError: there are fewer pictures than a sub-batch has.
    """
    if count < size:
        raise ValueError(f"{size} is not right: the batch of all processes has {count} pictures")
    orders = generator.permuted(np.tile(np.arange(count), (iterations, 1)), axis=1)
    return torch.from_numpy(orders[:, : count // size * size]).unflatten(1, (-1, size))


def whitened(rows: Tensor, shrinkage: float = 0.0) -> Tensor:
    """Return rows whose mean is 0 and whose covariance is the identity: L^-1 (z - mean), L L' the covariance.

    W-MSE (arXiv 2007.06346), section 3, with the Cholesky factor L. Where the covariance is singular all is NaN, so
    that the step is not taken.

    Args:
        rows: (..., m, K), m above K; the covariance is divided by m - 1.
        shrinkage: s, takes (1 - s) covariance + s identity in the covariance's place.
    """
    centred = rows - rows.mean(dim=-2, keepdim=True)
    covariance = centred.mT @ centred / (rows.shape[-2] - 1)
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    factor, failed = torch.linalg.cholesky_ex((1 - shrinkage) * covariance + shrinkage * eye)
    factor = factor.masked_fill(failed[..., None, None] != 0, torch.nan)
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT


def wmse(views: Tensor, parts: Tensor, unit_length: bool = True, shrinkage: float = 0.0) -> Tensor:
    """Return the loss of W-MSE: the mean distance of two views of a picture, whitened, over all pairs of views.

    Each view of each sub-batch is whitened alone. The distance is 2 - 2 cos, or the mean over dimensions of the squared
    difference.

    Args:
        views: (V, N, K), of all processes.
        parts: (I, S, m), numbers of the pictures of each sub-batch, see `sub_batches`.
        unit_length: which distance; true is 2 - 2 cos.
        shrinkage: see `whitened`.
    """
    wide = torch.promote_types(views.dtype, torch.float32)
    with torch.autocast(views.device.type, enabled=False):
        rows = whitened(views.to(wide)[:, parts], shrinkage)  # (V, I, S, m, K)
        rows = F.normalize(rows, dim=-1) if unit_length else rows
        pairs = [F.mse_loss(one, two) for one, two in itertools.combinations(rows, 2)]
        return torch.stack(pairs).mean() * (rows.shape[-1] if unit_length else 1)  # |a - b|^2 = 2 - 2 cos


def _everyone(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both views of all processes, (N, K), in float32 or above."""
    wide = torch.promote_types(first.dtype, torch.float32)
    rows, _ = gathered(torch.stack([first, second], dim=1).to(wide))
    return rows[:, 0], rows[:, 1]


def _standardised(view: Tensor) -> Tensor:
    """Return (N, K) with mean 0 and variance 1 of each column."""
    return F.batch_norm(view, None, None, training=True, eps=BATCH_NORM_EPS)
