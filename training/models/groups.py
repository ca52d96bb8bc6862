"""What a classifier keeps of groups of pictures while it trains: their weights in GroupDRO, and their accuracies.

Shapes: N pictures of a batch over all processes, K classes, E values of the column that makes groups with the label,
G = K E groups: number label * E + value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from granary.training.losses.robust import group_dro
from granary.training.method import Moment

MEMORY = 0.99  # share of the counted pictures that is kept from one batch to the next


class Groups(nn.Module):
    """The state of groups; checkpoints have it, and it is the same on all processes.

    Args:
        rows: of the data, for each class those of each value, (K, E).
        step_size: of the weights.
    """

    weights: Tensor
    counts: Tensor

    def __init__(self, rows: Sequence[Sequence[int]], step_size: float) -> None:
        super().__init__()
        there = torch.tensor(rows) > 0
        self.values, self.step_size = there.shape[1], step_size
        self.register_buffer("weights", there.flatten() / there.sum())  # q: of groups that there are
        self.register_buffer("counts", torch.zeros(2, there.numel()))  # pictures, and how many of them were right
        self.moved: Tensor | None = None

    def of(self, labels: Tensor, values: Tensor) -> Tensor:
        """Return the group of each picture, -1 where it has no label or no value: (N,), (N,) int64 -> (N,)."""
        return torch.where((labels >= 0) & (values >= 0), labels * self.values + values, -1)

    def loss(self, losses: Tensor, groups: Tensor, moment: Moment) -> Tensor:
        """Return the loss of GroupDRO; `follow` then keeps the weights that it used.

        Args:
            losses: (N,) of each picture.
            groups: (N,) of each picture.
            moment: where the run is; parts of an accumulated batch move the weights one after another.
        """
        weights = self.weights if moment.part == 0 or self.moved is None else self.moved
        loss, moved = group_dro(losses, groups, weights, self.step_size)
        self.moved = moved if self.training else None
        return loss

    @torch.no_grad()
    def follow(self) -> None:
        """Keep the weights of the step that was taken."""
        if self.moved is not None:
            self.weights.copy_(self.moved)
            self.moved = None

    @torch.no_grad()
    def worst(self, right: Tensor, groups: Tensor, moment: Moment) -> Tensor:
        """Return the accuracy of the worst group: in training over about the last hundred batches.

        In evaluation it is what has to be averaged over the batches to give that of all of them together.

        Args:
            right: (N,) whether each picture was classified rightly.
            groups: (N,) of each picture.
            moment: where the run is, or the number of the batch in an evaluation.
        """
        members = groups[:, None] == torch.arange(self.counts.shape[1], device=groups.device)  # (N, G)
        added = torch.stack([members.sum(dim=0), (members & right[:, None]).sum(dim=0)])
        if self.training:
            return _worst(self.counts.mul_(MEMORY).add_(added))
        before = self.counts.clone() if moment.step else torch.zeros_like(self.counts)
        return (moment.step + 1) * _worst(self.counts.copy_(before + added)) - moment.step * _worst(before)


def _worst(counts: Tensor) -> Tensor:
    """Return the least accuracy of the groups that have pictures, 0 where there are none: (2, G) -> scalar."""
    pictures, right = counts
    accuracies = torch.where(pictures > 0, right / pictures.clamp(min=torch.finfo(counts.dtype).tiny), torch.inf)
    return torch.where((pictures > 0).any(), accuracies.min(), 0.0)
