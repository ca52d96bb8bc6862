"""Numbers that follow the step: learning rate, weight decay, momentum: pure functions, so resuming needs no state."""

from __future__ import annotations

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Return the half cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def linear(start: float, end: float, progress: float) -> float:
    """Return the straight line from start (progress 0) to end (progress 1)."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def warmed_cosine(start: float, peak: float, end: float, step: int, warmup: int, steps: int) -> float:
    """Return a linear warmup from start to peak over `warmup` steps, then a half cosine from peak to end at `steps`."""
    if step < warmup:
        return linear(start, peak, step / warmup)
    return cosine(peak, end, (step - warmup) / max(1, steps - warmup))
