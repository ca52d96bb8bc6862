"""Cross-risk minimisation: the class-balanced loss, the chance of a flip, mistakes across twins.

Pezeshki et al. 2023, "Discovering environments with XRM" (arXiv 2309.16748). Shapes: B examples, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from granary.training.losses.robust import group_means


def balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over the classes of a batch of the mean cross-entropy within each, a scalar.

    Args:
        logits: (B, K) float32.
        labels: (B,) int64, the current ones; -1 is left out.
    """
    losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    return group_means(losses, labels, logits.shape[1]).sum()


def flip_chance(logits: Tensor) -> Tensor:
    """Return the chance that an example takes the class predicted for it: 0 at chance level, 1 at certainty.

    That is (p - 1/K) K / (K - 1) of its largest probability p.

    Args:
        logits: (B, K) of the network that holds each example out.

    Returns:
        (B,) in 0..1.
    """
    classes = logits.shape[1]
    largest = logits.softmax(dim=1).amax(dim=1)
    return ((largest - 1 / classes) * classes / (classes - 1)).clamp(0, 1)


def cross_mistakes(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Return environment 1 for the examples that either network classifies wrongly, 0 for the others.

    Args:
        first, second: (B, K) logits of the two networks.
        labels: (B,) int64, the original ones.

    Returns:
        (B,) int64.
    """
    return ((first.argmax(dim=1) != labels) | (second.argmax(dim=1) != labels)).long()
