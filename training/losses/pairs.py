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


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of each query against the keys of the whole batch (MoCo v3, arXiv 2104.02057, equation 1).

    The mean over n of -log exp(q_i k_i / t) / sum_j exp(q_i k_j / t), rows of unit length; j runs over the N pictures,
    i among them. Gradients go through both, where they have any: detach what is a target. Computed in float32 or above;
    constant rows give ln N.

    Args:
        queries, keys: (n, K) of any length, row i of both is picture i.
        temperature: t.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        everyone, start = gathered(F.normalize(keys.to(wide), dim=1))
        logits = F.normalize(queries.to(wide), dim=1) / temperature @ everyone.T  # (n, N)
        return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device) + start)


def queue_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of each query against its key and a queue of others (MoCo, arXiv 1911.05722, equation 1).

    The mean over n of -log exp(q k / t) / (exp(q k / t) + sum_j exp(q k_j / t)), rows of unit length. There is no
    gradient through keys and queue. Computed in float32 or above; constant rows, the queue's too, give ln(Q + 1).

    Args:
        queries, keys: (n, K) of any length, row i of both is picture i.
        queue: (Q, K) unit rows, the k_j.
        temperature: t.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    with torch.autocast(queries.device.type, enabled=False):
        sharp = F.normalize(queries.to(wide), dim=1) / temperature
        positive = (sharp * F.normalize(keys.detach().to(wide), dim=1)).sum(dim=1)
        others = (sharp @ queue.detach().T).logsumexp(dim=1)
        return (torch.logaddexp(positive, others) - positive).mean()


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over n of -cos(p, z), in -1..1 (SimSiam, arXiv 2011.10566, equation 1).

    There is no gradient through targets. Computed in float32 or above.

    Args:
        predictions, targets: (n, K) of any length, row i of both is picture i.
    """
    wide = torch.promote_types(predictions.dtype, torch.float32)
    with torch.autocast(predictions.device.type, enabled=False):
        unit = F.normalize(targets.detach().to(wide), dim=1)
        return -(F.normalize(predictions.to(wide), dim=1) * unit).sum(dim=1).mean()
