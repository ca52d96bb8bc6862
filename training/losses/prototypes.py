"""Losses of methods that compare pictures by prototypes: SwAV's swapped prediction, MSN's targets and regulariser.

Shapes: B pictures of this process, V views of each, R rows, D width, K prototypes. Cosines are those of rows to
prototypes; dividing them by a temperature gives logits. All is computed in float32 or above.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.losses.processes import gathered
from granary.training.losses.self_distillation import TINY, dino_losses, sinkhorn_knopp


def cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    """Return the cosine of each row to each prototype, (..., D) and (K, D) -> (..., K)."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(rows.to(wide), dim=-1) @ F.normalize(prototypes.to(wide), dim=-1).T


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Return SwAV's loss (arXiv 2006.09882, equation 2): each view predicts the codes of another large view.

    The mean over all pairs of a code and another view, and over pictures, of -sum_k q_k log softmax(s / temperature)_k.

    Args:
        scores: (V, B, K), cosines of all views, the two large ones first.
        codes: (2, B, K), q of the large views, without gradient.
        temperature: of the prediction.
    """
    large, small = dino_losses(scores[:2], scores[2:], codes, temperature)
    return large + small


@torch.no_grad()
def sharpened(scores: Tensor, temperature: float, sharpening: float, sinkhorn: int = 0) -> Tensor:
    """Return the targets of MSN (arXiv 2204.07141, section 3): p^(1 / T), each row divided by its sum.

    Args:
        scores: (R, K), cosines of the target views.
        temperature: of their prediction p = softmax(scores / temperature).
        sharpening: T, below 1.
        sinkhorn: iterations of Sinkhorn-Knopp on the sharpened rows of all processes, as in the authors' code; 0: none.
    """
    with torch.autocast(scores.device.type, enabled=False):
        logits = (scores / (temperature * sharpening)).log_softmax(dim=1)
        return sinkhorn_knopp(logits, 1.0, sinkhorn) if sinkhorn else logits.exp()


def mean_entropy_gap(scores: Tensor, temperature: float) -> Tensor:
    """Return ln K - H(p), p the mean prediction over all rows of all processes: 0 where p is uniform, ln K for one-hot.

    MSN adds it to its loss, so that the entropy of the mean prediction is maximised (me-max).

    Args:
        scores: (R, K), cosines of the anchor views; R is the same on all processes.
        temperature: of their prediction softmax(scores / temperature).
    """
    with torch.autocast(scores.device.type, enabled=False):
        mean = (scores / temperature).softmax(dim=1).mean(dim=0)
        everywhere = gathered(mean[None])[0].mean(dim=0)
        entropy = torch.special.entr(everywhere.clamp(min=TINY)).sum()  # whose slope at 0 has no end
        return everywhere.new_tensor(len(mean)).log() - entropy
