"""Barlow Twins, VICReg and whitening as the papers state them: one number at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def slow_barlow(first: Tensor, second: Tensor, weight: float, eps: float = 0.0) -> Tensor:
    """Equations 1 and 2 of arXiv 2103.03230, on centred columns; eps is added to each mean square."""
    count, width = first.shape
    total = torch.zeros((), dtype=first.dtype)
    for i in range(width):
        for j in range(width):
            a, b = first[:, i] - first[:, i].sum() / count, second[:, j] - second[:, j].sum() / count
            dot = sum(a[row] * b[row] for row in range(count))
            lengths = [sum(x[row] ** 2 for row in range(count)) + count * eps for x in (a, b)]
            c = dot / (torch.as_tensor(lengths[0]).sqrt() * torch.as_tensor(lengths[1]).sqrt())
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def slow_vicreg(first: Tensor, second: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Algorithm 1 of arXiv 2105.04906, where the hinge is averaged over branches and the covariance is summed."""
    (count, width), (invariance, variance, covariance) = first.shape, weights
    total = torch.zeros((), dtype=first.dtype)
    for row in range(count):
        for k in range(width):
            total = total + invariance * (first[row, k] - second[row, k]) ** 2 / (count * width)
    for view in (first, second):
        means = [view[:, k].sum() / count for k in range(width)]
        for i in range(width):
            for j in range(width):
                c = sum((view[row, i] - means[i]) * (view[row, j] - means[j]) for row in range(count)) / (count - 1)
                c = torch.as_tensor(c)
                if i == j:
                    lack = 1 - (c + 1e-4).sqrt()
                    total = total + variance * lack.clamp(min=0) / width / 2
                else:
                    total = total + covariance * c**2 / width
    return total


def whitened_columns(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows (count, width) of mean 0 whose columns are orthogonal and have mean square 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, dtype=torch.float64, generator=generator)
    q, _ = torch.linalg.qr(rows - rows.mean(dim=0))  # columns stay orthogonal to the constant
    return q * math.sqrt(count)


def slow_wmse(views: Tensor, parts: Tensor, unit_length: bool, shrinkage: float = 0.0) -> Tensor:
    """Algorithm of arXiv 2007.06346: Gram-Schmidt sub-batch by sub-batch, then picture by picture.

    Args:
        views: (V, N, K).
        parts: (I, S, m) numbers of pictures.
        unit_length: 2 - 2 cos in the place of the mean squared difference.
        shrinkage: share of the identity in the covariance.
    """
    terms = []
    for part in parts.flatten(0, 1):
        white = [_slow_whitened([view[i] for i in part], shrinkage) for view in views]
        for a in range(len(white)):
            for b in range(a + 1, len(white)):
                for x, y in zip(white[a], white[b], strict=True):
                    if unit_length:
                        terms.append(2 - 2 * (x @ y) / (x.square().sum().sqrt() * y.square().sum().sqrt()))
                    else:
                        terms.append((x - y).square().sum() / len(x))
    return torch.stack(terms).mean()


def _slow_whitened(rows: list[Tensor], shrinkage: float) -> list[Tensor]:
    """Rows times the inverse of the Cholesky factor of their covariance, found entry by entry."""
    count, width = len(rows), len(rows[0])
    mean = torch.stack(rows).sum(dim=0) / count
    centred = [row - mean for row in rows]
    covariance = (1 - shrinkage) * sum((torch.outer(row, row) for row in centred), torch.zeros(())) / (count - 1)
    covariance = covariance + shrinkage * torch.eye(width, dtype=mean.dtype)
    factor: dict[tuple[int, int], Tensor] = {}
    for i in range(width):
        for j in range(i + 1):
            rest = covariance[i, j] - sum((factor[i, k] * factor[j, k] for k in range(j)), torch.zeros(()))
            factor[i, j] = rest.sqrt() if i == j else rest / factor[j, j]
    white = []
    for row in centred:
        solved: list[Tensor] = []
        for i in range(width):
            rest = row[i] - sum((factor[i, k] * solved[k] for k in range(i)), torch.zeros(()))
            solved.append(rest / factor[i, i])
        white.append(torch.stack(solved))
    return white
