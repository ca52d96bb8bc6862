"""Rows of all processes, for losses in which every picture of a batch takes part."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, and the number of the first one of this process.

    The mean over processes of the gradients of what is computed from them is the gradient of the mean.

    Args:
        rows: (n, ...), as many on every process.

    Returns:
        (N, ...), process after process; with one process the rows themselves and 0.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows, 0
    everyone: Tensor = _Gathered.apply(rows)
    return everyone, dist.get_rank() * len(rows)


def scattered(rows: Tensor) -> Tensor:
    """Return the part of this process of rows (N, ...) that all processes have: every one falls to one of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    return rows[dist.get_rank() :: dist.get_world_size()]


class _Context(Protocol):
    """What the backward pass must know."""

    count: int


class _Gathered(torch.autograd.Function):
    """Rows (n, ...) of all processes, (N, ...): the gradient of a process' rows is the sum over all processes."""

    @staticmethod
    def forward(ctx: _Context, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.count
        return gradient[start : start + ctx.count]
