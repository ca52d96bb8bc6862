"""Intervals of a share that was counted on a sample."""

from __future__ import annotations

import math


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson interval (1927), (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

        >>> [round(bound, 3) for bound in wilson(0.9, 100)]
        [0.826, 0.945]

    Args:
        share: p, of n trials.
        n: trials; NaN where there is none.
        z: quantile of the normal distribution; that of 95 % by default.
    """
    if not n:
        return math.nan, math.nan
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
