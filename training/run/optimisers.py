"""The optimiser that a recipe names, and the clipping of gradients before its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_

from granary.training.method import ParameterGroup
from granary.training.recipe import SGD, AdamW, Optimiser
from granary.training.run.lars import LARS


def make_optimiser(options: Optimiser, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe; the loop sets learning rate and decay of every group at every step.

    Args:
        options: of the recipe.
        groups: what it trains; LARS adapts the steps of those that decay.
    """
    if isinstance(options, AdamW):
        known = [{"params": group.params} for group in groups]
        return torch.optim.AdamW(known, options.lr, options.betas, options.eps, fused=True)
    if isinstance(options, SGD):
        known = [{"params": group.params} for group in groups]
        return torch.optim.SGD(known, options.lr, options.momentum, nesterov=options.nesterov, foreach=True)
    adapted = [{"params": group.params, "adapted": group.decay} for group in groups]
    return LARS(adapted, options.lr, options.momentum, options.trust)


def clip(groups: Sequence[ParameterGroup], largest: float) -> dict[str, float]:
    """Clip the gradients of parameter groups, those of one `clip` name together; returns the norms before."""
    norms = {}
    for name in dict.fromkeys(group.clip for group in groups):
        norm = clip_grad_norm_([p for group in groups if group.clip == name for p in group.params], largest)
        norms[f"{name}_norm"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return norms
