"""How pictures and texts are compared where each has one vector: by products. What depends on the pair is the model's.

Shapes: N pictures, T texts, C classes, P sentences of a class, D dimensions of the shared space.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def products(pictures: Tensor, texts: Tensor) -> Tensor:
    """Return the scores of all pairs, (N, T), of (N, D) and (T, D) unit rows."""
    return pictures @ texts.T


def own_products(pictures: Tensor, texts: Tensor) -> Tensor:
    """Return the scores of pictures (N, D) with texts of their own (N, T, D): (N, T); equal texts tie exactly."""
    return (texts * pictures[:, None]).sum(dim=2)


def mean_direction(texts: Tensor) -> Tensor:
    """Return one unit vector for the sentences of each class: (C, P, D) -> (C, D)."""
    return F.normalize(texts.mean(dim=1), dim=1)
