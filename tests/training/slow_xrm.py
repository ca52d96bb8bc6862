"""XRM written out from the paper, example by example in float64, without autograd."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    """Return the probabilities of one example, (K,)."""
    powers = np.array([math.exp(value - logits.max()) for value in logits])
    return powers / powers.sum()


def loss_and_gradient(logits: Array, labels: NDArray[np.int64]) -> tuple[float, Array]:
    """Return the sum over the classes there are of their mean cross-entropy, and its gradient by the logits (B, K)."""
    loss, gradient = 0.0, np.zeros_like(logits)
    for label in set(labels.tolist()) - {-1}:
        members = [row for row in range(len(labels)) if labels[row] == label]
        for row in members:
            chances = softmax(logits[row])
            loss -= math.log(chances[label]) / len(members)
            gradient[row] = chances / len(members)
            gradient[row, label] -= 1 / len(members)
    return loss, gradient


def chance_of_flip(logits: Array) -> float:
    """Return (p - 1/K) K / (K - 1) of one example, (K,)."""
    p, k = float(softmax(logits).max()), len(logits)
    return (p - 1 / k) * k / (k - 1)
