"""Where a video is cut: the colours of a frame are other ones than those of the frame before.

Shapes: T frames, h x w thumbnails.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from granary.curation.options import Options

BINS = 8  # of a colour channel
SIDE = 32  # of the thumbnails that are compared
Histogram = NDArray[np.float64]


class Shots(Options, frozen=True):
    """Where a video without annotated steps is cut."""

    threshold: float = Field(0.4, gt=0, le=1, description="share of a frame's colours that change at a cut")
    min_seconds: float = Field(1.0, ge=0, description="shortest shot; a cut that comes sooner is none")


def colours(thumbnail: NDArray[np.uint8]) -> Histogram:
    """Return the shares of 512 colours in a thumbnail (h, w, 3), (512,)."""
    levels = thumbnail.reshape(-1, 3).astype(np.int64) * BINS // 256
    return np.bincount(levels @ np.array([BINS * BINS, BINS, 1]), minlength=BINS**3) / max(len(levels), 1)


def changes(histograms: Sequence[Histogram]) -> NDArray[np.float64]:
    """Return the share of the colours that changed since the frame before, (T,) from 0 to 1; 0 for the first."""
    if not len(histograms):
        return np.zeros(0)
    return np.abs(np.diff(np.stack(histograms), axis=0, prepend=histograms[0][None])).sum(axis=1) / 2


def cuts(change: NDArray[np.float64], times: NDArray[np.float64], options: Shots) -> list[int]:
    """Return the first frames of the shots, rising, 0 first.

    Args:
        change: (T,), see `changes`.
        times: (T,) seconds.
        options: what a cut is.
    """
    starts = [0] if len(times) else []
    for frame in np.flatnonzero(change >= options.threshold).tolist():
        if frame and times[frame] - times[starts[-1]] >= options.min_seconds:
            starts.append(frame)
    return starts
