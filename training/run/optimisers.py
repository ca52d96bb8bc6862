"""The optimiser that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
