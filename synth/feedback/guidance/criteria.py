"""What the classifier's feedback raises: pure, differentiable functions with one value for each sample.

Source: Askari-Hemmat et al., Feedback-guided Data Synthesis for Imbalanced Classification (arXiv 2310.00158); hardness
after Sehwag et al., Generating High Fidelity Data from Low-density Regions using Diffusion Models (CVPR 2022).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of the target class: high where the classifier is wrong.

    Its gradient in logits is p - onehot.

    Args:
        logits: (n, classes).
        targets: (n,) int64.

    Returns:
        (n,) nats.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """Return H = -sum p log p: high where the classifier is unsure.

    Its gradient in logits is -p (log p + H), through both factors.

    Args:
        logits: (n, classes).

    Returns:
        (n,) nats.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def hardness(features: Tensor, means: Tensor, whitening: Tensor, log_norms: Tensor) -> Tensor:
    """Return minus the log density of each row under its own Gaussian: high far from what the class looks like.

    features, means: (n, d); whitening: (n, d, d), W with W^T W the inverse covariance; log_norms: (n,),
    ln det of the covariance + d ln 2 pi. Returns (n,) nats, 0.5 (|W (phi - mu)|^2 + log_norm).
    """
    white = (whitening @ (features - means).unsqueeze(2)).squeeze(2)
    return 0.5 * (white.square().sum(dim=1) + log_norms)
