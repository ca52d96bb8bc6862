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
