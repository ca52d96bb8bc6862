"""Outlines to pixels, with COCO's own rule of which pixel belongs to a polygon."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from granary.curation.dense.rle import Lengths, between, mask_of, run_lengths

FINER = 5  # COCO draws the outline on a grid five times as fine
MOST_POLYGONS, MOST_POINTS, MOST_PIXELS = 10_000, 100_000, 10_000_000  # of an outline; more is no annotation


def rasterised(polygons: object, height: int, width: int) -> Lengths:
    """Return the run lengths of the union of polygons.

    Args:
        polygons: list of [x, y, x, y, ...] in pixels, at least three points each.
        height, width: of the mask.

    Raises:
        ValueError: a polygon is not such a list.
    """
    mask = np.zeros((height, width), bool)
    if not isinstance(polygons, Sequence) or isinstance(polygons, str) or not polygons:
        raise ValueError("the outline is no list of polygons")
    if len(polygons) > MOST_POLYGONS:
        raise ValueError(f"the outline has {len(polygons)} polygons, the limit is {MOST_POLYGONS}")
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError("a polygon is no list of numbers") from error
        if points.ndim != 1 or len(points) % 2 or not 6 <= len(points) <= 2 * MOST_POINTS:
            raise ValueError("a polygon needs three points or more, as x, y, x, y, ...")
        if not np.isfinite(points).all() or np.abs(points).max() > 10 * (height + width):
            raise ValueError("a polygon lies far outside of the image")
        mask |= mask_of(_filled(points.reshape(-1, 2), height, width), height, width)
    return run_lengths(mask)


def _filled(points: NDArray[np.float64], height: int, width: int) -> Lengths:
    """Return the run lengths of one polygon: where its outline crosses a column's middle, inside begins or ends."""
    x, y = _outline(points)
    moved = np.flatnonzero(x[1:] != x[:-1]) + 1
    column = (np.where(x[moved] < x[moved - 1], x[moved], x[moved] - 1) + 0.5) / FINER - 0.5
    row = np.ceil(np.clip((np.minimum(y[moved], y[moved - 1]) + 0.5) / FINER - 0.5, 0, height))
    middle = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    return between(column[middle].astype(np.int64) * height + row[middle].astype(np.int64), height * width)


def _outline(points: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the fine pixels (x, y) that the outline of a polygon passes, in order."""
    fine = (FINER * points + 0.5).astype(np.int64)
    starts, stops = fine, np.roll(fine, -1, axis=0)
    if int(np.abs(stops - starts).max(axis=1).sum()) > FINER * MOST_PIXELS:
        raise ValueError(f"the outline of a polygon is longer than {MOST_PIXELS} pixels")
    xs, ys = [], []
    for (x0, y0), (x1, y1) in zip(starts.tolist(), stops.tolist(), strict=True):
        dx, dy = abs(x1 - x0), abs(y1 - y0)
        flat = dx >= dy
        turned = x0 > x1 if flat else y0 > y1
        if turned:
            x0, y0, x1, y1 = x1, y1, x0, y0
        steps = np.arange(max(dx, dy) + 1)
        steps = steps[::-1] if turned else steps
        slope = ((y1 - y0) / dx if dx else 0.0) if flat else (x1 - x0) / dy
        across = ((y0 if flat else x0) + slope * steps + 0.5).astype(np.int64)
        along = steps + (x0 if flat else y0)
        xs.append(along if flat else across)
        ys.append(across if flat else along)
    return np.concatenate(xs), np.concatenate(ys)
