"""Ways to bring a video within a budget of tokens: LongVU's (arXiv 2410.17434), parts of it, and equal steps.

Each is two functions, since the frames that stay are known before anything but the encoder has seen them.
Shapes: T frames, H x W tokens of a frame, L tokens of a question, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from granary.training.models.compression import (
    Compressed,
    Costs,
    Limits,
    capped,
    fitted,
    kept_frames,
    laid_out,
    surviving,
)

Reduction = Literal["all", "uniform", "temporal", "query", "full"]


def chosen_frames(features: Tensor, limits: Limits, costs: Costs, reduction: Reduction) -> Tensor:
    """Return the frames that stay, (T',) int64, rising.

    Args:
        features: (T, ...) by which frames are compared.
        limits: what the video may cost.
        costs: of a frame.
        reduction: all, whatever they cost; uniform, as many as there is room for at high resolution, in equal steps;
            temporal, those unlike their window, of these as many; query, of these as many as at low resolution; full,
            all that LongVU's temporal reduction leaves.
    """
    every = torch.arange(len(features), device=features.device)
    if reduction == "full":
        return surviving(features, limits, costs)
    if reduction == "all" or len(every) * costs.high <= limits.budget:
        return every
    if reduction == "uniform":
        return capped(every, _room(limits, costs.high))
    if reduction == "query" and len(every) * costs.low <= limits.budget:
        return every
    stays = kept_frames(features, limits.window, limits.similar, limits.itself)
    return capped(stays, _room(limits, costs.high if reduction == "temporal" else costs.low))


def _room(limits: Limits, cost: int) -> int:
    """Return how many frames of a cost there is room for, at least one."""
    return max(1, limits.budget // cost)


def within(
    large: Tensor,
    small: Tensor,
    frames: Tensor,
    question: Tensor,
    limits: Limits,
    reduction: Reduction,
    newline: Tensor | None = None,
) -> Compressed:
    """Return the tokens of the frames that stay.

    Args:
        large, small: of these frames, at both resolutions.
        frames: (T',) int64, of `chosen_frames`.
        question: (L, D).
        limits: what the video may cost.
        reduction: as in `chosen_frames`.
        newline: (D,) after every row of a frame.
    """
    if reduction in ("query", "full"):
        return fitted(large, small, frames, question, limits, newline)
    sharp = torch.ones_like(frames, dtype=torch.bool)
    return Compressed(laid_out(large, frames, newline), frames, sharp, "high", [])
