"""Losses of two views of the same pictures, on one process or several.

Shapes: n pictures of this process, N of all; K dimensions of the projector's output; z and z' the two views. The mean
over processes of what a loss returns, and of its gradients, is that of the whole batch on one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.losses.processes import gathered


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return SimCLR's loss (arXiv 2002.05709, equation 1), the mean over the 2N rows of both views.

    -log exp(z_i z_i' / t) / sum_{j != i} exp(z_i z_j / t), rows of unit length; the sum is over the 2N - 1 others, the
    positive among them. Computed in float32 or above; constant rows give ln(2N - 1).

    Args:
        first, second: (n, K) of any length, row i of both is picture i.
        temperature: t.
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        rows = F.normalize(torch.stack([first, second], dim=1).to(wide), dim=2)  # (n, 2, K)
        everyone, start = gathered(rows)
        logits = rows.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature  # (2n, 2N), views of a picture together
        places = torch.arange(2 * len(rows), device=rows.device) + 2 * start
        logits = logits.scatter(1, places[:, None], -math.inf)  # not with itself
        return F.cross_entropy(logits, places ^ 1)
