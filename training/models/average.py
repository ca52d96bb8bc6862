"""The moving average of a model: the teacher or target of BYOL, MoCo, DINO, I-JEPA and their kin."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move a model towards another of the same architecture: target <- momentum target + (1 - momentum) source.

    Floating-point buffers, such as the running statistics of BatchNorm, move as the weights do; counters are copied.
    The authors' code of BYOL, MoCo and DINO averages the weights alone, since their targets run in training mode and
    gather statistics of their own: those are hardly disturbed by this, where a copy would replace them by those of
    other weights. A target in evaluation mode, which gathers none, gets statistics as old as its weights.

    Args:
        target: is changed in place; its parameters may be sharded as those of `source` are.
        source: is left as it is.
        momentum: in 0..1.
    """
    torch._foreach_lerp_([*target.parameters()], [*source.parameters()], 1 - momentum)
    for moved, given in zip(target.buffers(), source.buffers(), strict=True):
        if moved.is_floating_point():
            moved.lerp_(given, 1 - momentum)
        else:
            moved.copy_(given)
