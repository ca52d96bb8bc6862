"""Losses and samplers of classification, also under imbalance.

Balanced softmax: Ren et al. 2020 (arXiv 2007.10740): p_k is proportional to n_k exp(z_k).
Shapes: B pictures, K classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Loss = Literal["cross-entropy", "balanced-softmax"]


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Return -log softmax(z)_y: (B, K) logits, (B,) targets -> its mean, or (B,) with reduction none."""
    return F.cross_entropy(logits, targets, reduction=reduction)


def balanced_softmax(logits: Tensor, targets: Tensor, counts: Tensor, reduction: str = "mean") -> Tensor:
    """Return -log(n_y exp(z_y) / sum_k n_k exp(z_k)), its mean over the batch.

    Args:
        logits: (B, K).
        targets: (B,) class indices.
        counts: (K,) pictures of each class in the mixture that is trained on, real and synthetic together. A class
            without any takes no part in the sum.
        reduction: mean, or none for that of each picture, (B,).
    """
    weighted = logits + counts.to(logits.dtype).log()  # log 0 = -inf: a share of 0
    return F.cross_entropy(weighted, targets, reduction=reduction)


def classification_loss(kind: Loss, logits: Tensor, targets: Tensor, counts: Tensor, reduction: str = "mean") -> Tensor:
    """Return the loss of that name, see `balanced_softmax`; raises ValueError when there is none."""
    if kind == "cross-entropy":
        return cross_entropy(logits, targets, reduction)
    if kind == "balanced-softmax":
        return balanced_softmax(logits, targets, counts, reduction)
    raise ValueError(f"loss '{kind}' is unknown; it is cross-entropy or balanced-softmax")


def labelled_scores(kind: Loss, logits: Tensor, labels: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Return loss and accuracy over the labelled pictures, and the share of those without a label.

    A batch without any label has the loss 0 and moves nothing.

    Args:
        kind, counts: see `balanced_softmax`.
        logits: (B, K).
        labels: (B,) class indices, -1 for none.
    """
    labelled = labels >= 0
    watched = {"unlabelled": (~labelled).float().mean()}
    if not labelled.any():
        return {"loss": logits.sum() * 0, "accuracy": logits.new_zeros(()), **watched}
    known, truth = logits[labelled].float(), labels[labelled]
    loss = classification_loss(kind, known, truth, counts)
    return {"loss": loss, "accuracy": (known.argmax(dim=1) == truth).float().mean(), **watched}


def balanced_weights(groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the probability of each picture when every group is drawn as often: 1 / (G n_g), (n,) float64."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[inverse])


def balanced_indices(groups: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw rows with replacement so that every group comes equally often: (n,) groups -> (size,) int64."""
    return rng.choice(len(groups), size, p=balanced_weights(groups))
