"""SwAV and MSN as the papers state them: one picture, one pair of views, one prototype at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from slow_dino import slow_sinkhorn
from torch import Tensor


def slow_cosines(row: Tensor, prototypes: Tensor) -> Tensor:
    """One row (D,) to each prototype: (K,)."""
    return torch.stack([row @ c / (row.square().sum().sqrt() * c.square().sum().sqrt()) for c in prototypes])


def slow_softmax(logits: Tensor) -> Tensor:
    exponentials = torch.exp(logits)
    return exponentials / sum(exponentials)


def slow_swav(
    views: Tensor, prototypes: Tensor, temperature: float, epsilon: float, queue: Tensor | None = None
) -> Tensor:
    """Equations 1 to 3 of arXiv 2006.09882.

    Args:
        views: (V, B, D), the two large ones first.
        prototypes: (K, D), unit rows.
        temperature: of the prediction.
        epsilon: of the codes.
        queue: (2, Q, D) rows that are assigned with the batch.
    """
    pictures, terms = views.shape[1], []
    for assigned in range(2):
        rows = views[assigned] if queue is None else torch.cat([queue[assigned], views[assigned]])
        scores = torch.stack([slow_cosines(row, prototypes) for row in rows])
        codes = slow_sinkhorn(scores.detach(), epsilon)[-pictures:]
        for v, view in enumerate(views):
            if v != assigned:
                predicted = [slow_softmax(slow_cosines(row, prototypes) / temperature) for row in view]
                terms += [-(codes[b] * torch.log(predicted[b])).sum() for b in range(pictures)]
    return torch.stack(terms).mean()


def slow_msn(
    anchors: Sequence[Tensor], target: Tensor, prototypes: Tensor, temperature: float, sharpening: float, weight: float
) -> Tensor:
    """Equation 1 of arXiv 2204.07141, without Sinkhorn.

    Args:
        anchors: V views (B, D).
        target: (B, D).
        prototypes: (K, D) of any length.
        temperature: of predictions.
        sharpening: T.
        weight: lambda, of the entropy of the mean prediction, to which ln K is added.
    """
    terms, predictions = [], []
    for view in anchors:
        for row, goal in zip(view, target, strict=True):
            p = slow_softmax(slow_cosines(row, prototypes) / temperature)
            powers = slow_softmax(slow_cosines(goal, prototypes) / temperature) ** (1 / sharpening)
            terms.append(-((powers / powers.sum()).detach() * torch.log(p)).sum())
            predictions.append(p)
    mean = sum(predictions, torch.zeros_like(predictions[0])) / len(predictions)
    entropy = -sum((p * torch.log(p) for p in mean), torch.zeros(()))
    return sum(terms, torch.zeros(())) / len(terms) + weight * (math.log(len(mean)) - entropy)
