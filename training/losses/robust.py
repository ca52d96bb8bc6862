"""GroupDRO: the worst group counts the most (Sagawa et al. 2020, arXiv 1911.08731, algorithm 1).

Shapes: N pictures of a batch over all processes, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_means(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return the mean of every group, 0 of one without pictures: (N,) values, (N,) groups, -1 for none -> (G,)."""
    members = groups[:, None] == torch.arange(count, device=groups.device)  # (N, G)
    sums = torch.where(members, values[:, None], 0).sum(dim=0)  # in a fixed order, unlike index_add on CUDA
    return sums / members.sum(dim=0, dtype=values.dtype).clamp(min=1)


def group_dro(losses: Tensor, groups: Tensor, weights: Tensor, step_size: float) -> tuple[Tensor, Tensor]:
    """Return sum_g q_g L_g and the new q: q_g exp(step_size L_g), divided by their sum; L_g is the mean of a group.

    A group without pictures in the batch keeps its q until the division. There is no gradient through q.

    Args:
        losses: (N,) of each picture.
        groups: (N,) int64, -1 for none.
        weights: (G,) q before this batch, of any sum.
        step_size: eta.
    """
    means = group_means(losses, groups, len(weights))
    moved = weights * (step_size * means.detach()).exp()
    moved = moved / moved.sum()
    return (moved * means).sum(), moved
