"""Losses of two views as the papers state them: one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1 for each of the 2N rows, and their mean."""
    rows = [row / row.square().sum().sqrt() for row in (*first, *second)]
    count, terms = len(first), []
    for i, row in enumerate(rows):
        scores = [torch.exp((row * other).sum() / temperature) for other in rows]
        positive = (i + count) % (2 * count)
        terms.append(-torch.log(scores[positive] / sum(scores[j] for j in range(2 * count) if j != i)))
    return torch.stack(terms).mean()
