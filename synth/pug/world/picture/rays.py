"""Rays against one mesh: what is asked of a tracer, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Hits:
    """Where n rays first meet a surface.

    Args:
        distance: (n,) float32 in lengths of the ray's direction; infinite where the ray meets nothing.
        triangle: (n,) int32, -1 where the ray meets nothing.
        u, v: (n,) float32; the point is (1 - u - v) a + u b + v c of the triangle's corners.
    """

    distance: np.ndarray
    triangle: np.ndarray
    u: np.ndarray
    v: np.ndarray

    def take(self, rows: np.ndarray) -> Hits:
        """Return some of the hits."""
        return Hits(self.distance.take(rows), self.triangle.take(rows), self.u.take(rows), self.v.take(rows))


class Tracer(Protocol):
    """Casts rays at one mesh, in its own coordinates."""

    def closest(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Return the first hits of rays, (n, 3) float32 each."""

    def occluded(self, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
        """Return (n,) bool: whether rays meet the mesh within `reach` lengths of their directions."""


TracerClass = Callable[[np.ndarray, np.ndarray], Tracer]  # from vertices (v, 3) float32 and triangles (t, 3) int32
