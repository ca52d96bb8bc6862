"""A loss of a whole batch, computed by two processes with half of it each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Loss = Callable[..., Tensor]


def halves(losses: Sequence[Loss], views: Sequence[Tensor], folder: Path) -> list[tuple[float, list[np.ndarray]]]:
    """Compute losses of views (N, ...) on two processes with half of the rows each.

    Args:
        losses: functions at the top of a module, of as many tensors as there are views.
        views: their arguments.
        folder: where the processes meet.

    Returns:
        For each loss what data-parallel training makes of it: the mean of both values, and the mean gradient of all
        rows of each view.
    """
    context = multiprocessing.get_context("forkserver")
    answers = context.Queue()
    rows = [view.detach().numpy() for view in views]
    work = [
        context.Process(target=_half, args=(rank, str(folder / "store"), losses, rows, answers)) for rank in range(2)
    ]
    for process in work:
        process.start()
    parts = [part for _, part in sorted(answers.get(timeout=300) for _ in work)]
    for process in work:
        process.join()
    return [
        (
            (left[0] + right[0]) / 2,
            [np.concatenate(both) / 2 for both in zip(left[1], right[1], strict=True)],
        )
        for left, right in zip(*parts, strict=True)
    ]


def _half(rank: int, file: str, losses: Sequence[Loss], rows: Sequence[np.ndarray], answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = []
    for loss in losses:
        views = [torch.from_numpy(view).chunk(2)[rank].clone().requires_grad_() for view in rows]
        value = loss(*views)
        gradients = torch.autograd.grad(value, views)
        found.append((float(value), [gradient.numpy() for gradient in gradients]))
    answers.put((rank, found))
    dist.destroy_process_group()
