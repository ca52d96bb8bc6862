"""Region similarity J and boundary accuracy F of masks, as DAVIS defines them (Perazzi et al. 2016, CVPR).

Shapes: h, w pixels, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]
TOLERANCE = 0.008  # of the picture's diagonal
RIGHT = 0.5  # from here on a frame counts for recall
PARTS = 4  # of a sequence: decay compares the first with the last


def region_similarity(predicted: Mask, truth: Mask) -> float:
    """Return J, intersection over union of two masks (h, w); 1 when both are empty."""
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else 1.0


def boundary(mask: Mask) -> Mask:
    """Return the pixels (h, w) that differ from the one to the right, below, or below to the right.

    In the last row and column only the neighbour that is there counts.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def boundary_accuracy(predicted: Mask, truth: Mask, tolerance: float = TOLERANCE) -> float:
    """Return F, 2 P R / (P + R) of boundary pixels that are near the other boundary.

    Near is within a disk of ceil(tolerance * diagonal) pixels. Without any boundary pixel on one side its share is 1,
    the other's 0; without any on both sides F is 1.

    Args:
        predicted, truth: (h, w).
        tolerance: share of the diagonal; from 1 on pixels.
    """
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*predicted.shape))
    edge, true_edge = boundary(predicted), boundary(truth)
    precision, recall = _near(edge, true_edge, radius), _near(true_edge, edge, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(pixels: Mask, others: Mask, radius: float) -> float:
    """Return the share of the pixels within `radius` of one of the others."""
    if not pixels.any():
        return 1.0
    return float((distance_transform_edt(~others)[pixels] <= radius).mean()) if others.any() else 0.0


def over_time(values: Sequence[float]) -> dict[str, float]:
    """Return mean, recall (share of frames above 0.5) and decay (first quarter less last) of values (T,), T > 0."""
    frames = np.asarray(values, np.float64)
    bounds = np.round(np.linspace(1, len(frames), PARTS + 1) + 1e-10).astype(int) - 1
    first, last = frames[bounds[0] : bounds[1] + 1], frames[bounds[-2] : bounds[-1] + 1]
    return {
        "mean": float(frames.mean()),
        "recall": float((frames > RIGHT).mean()),
        "decay": float(first.mean() - last.mean()),
    }
