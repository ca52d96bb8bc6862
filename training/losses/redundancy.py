"""Losses that keep the dimensions of an embedding alive and different: Barlow Twins and VICReg.

Shapes: n pictures of this process, N of all; K dimensions of the projector's output; z and z' the two views, row i of
both is picture i. Means, variances and correlations are those of all N, with gradients, so that several processes
compute what one would. All is computed in float32 or above.
"""

from __future__ import annotations

from typing import NamedTuple

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


def _everyone(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return both views of all processes, (N, K), in float32 or above."""
    wide = torch.promote_types(first.dtype, torch.float32)
    rows, _ = gathered(torch.stack([first, second], dim=1).to(wide))
    return rows[:, 0], rows[:, 1]


def _standardised(view: Tensor) -> Tensor:
    """Return (N, K) with mean 0 and variance 1 of each column."""
    return F.batch_norm(view, None, None, training=True, eps=BATCH_NORM_EPS)
