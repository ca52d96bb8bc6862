"""A queue of the latest rows that all processes have seen: the negatives of MoCo, the support set of NNCLR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.losses.processes import gathered
from granary.training.method import Moment


class Queue(nn.Module):
    """Q unit rows, at first random ones; part of a method's state, and the same on all processes.

    What the parts of a batch add is put in by `follow`, when the step has been taken: a step whose loss is not finite
    leaves the queue as it was.

    Args:
        size: Q.
        width: K.

    Attributes:
        rows: (Q, K) unit rows.
        place: where the oldest row is, which is replaced next.
    """

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.added: list[Tensor] = []

    def add(self, rows: Tensor, moment: Moment) -> None:
        """Keep rows of a part of a batch for `follow`; the first part drops those of a step that was not taken.

        Args:
            rows: (n, K) of any length.
            moment: says which part it is.
        """
        if moment.part == 0:
            self.added = []
        self.added.append(rows.detach())

    @torch.no_grad()
    def follow(self) -> None:
        """Put what was added on all processes, process after process, in the place of the oldest rows."""
        rows, _ = gathered(F.normalize(torch.cat(self.added).to(self.rows.dtype), dim=1))
        size, count = len(self.rows), len(rows)
        self.rows[(self.place + torch.arange(count, device=rows.device)) % size] = rows
        self.place.add_(count).remainder_(size)
        self.added = []

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Return the row of the queue whose cosine with each row is the largest: (n, K) of any length -> (n, K)."""
        with torch.autocast(rows.device.type, enabled=False):
            return self.rows[(rows.to(self.rows.dtype) @ self.rows.T).argmax(dim=1)]


def check_queue(size: int, batch: int) -> None:
    """Raise UserError where a queue cannot hold a batch.

    Args:
        size: of the queue, `options.queue`.
        batch: pictures of a step, over all processes.
    """
    if size < batch:
        raise UserError(f"options.queue: {size} is not right: it must hold the {batch} pictures of a batch at least")
