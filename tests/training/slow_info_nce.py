"""InfoNCE and the cosine of BYOL and SimSiam as the papers state them: one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(row: Tensor) -> Tensor:
    return row / row.square().sum().sqrt()


def slow_info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """MoCo v3's equation 1 for each query against all keys of the batch, and their mean."""
    terms = []
    for i, query in enumerate(queries):
        scores = [torch.exp((unit(query) * unit(key)).sum() / temperature) for key in keys]
        terms.append(-torch.log(scores[i] / sum(scores)))
    return torch.stack(terms).mean()


def slow_queue_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's equation 1: a query's own key against the queue."""
    terms = []
    for query, key in zip(queries, keys, strict=True):
        scores = [torch.exp((unit(query) * unit(other)).sum() / temperature) for other in (key, *queue)]
        terms.append(-torch.log(scores[0] / sum(scores)))
    return torch.stack(terms).mean()


def slow_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """BYOL's equation 2: the squared distance of unit rows, mean over pictures; it is 2 - 2 cos."""
    pairs = zip(predictions, targets, strict=True)
    return torch.stack([(unit(p) - unit(z)).square().sum() for p, z in pairs]).mean()
