"""Unreal's axes: left-handed, centimetres, X forward, Y right, Z up; rotations are pitch, yaw, roll in degrees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

Triple = tuple[float, float, float]
FAR = 65504.0  # cm; the largest half-precision number, which UnrealCV's depth shows for the sky


def rotation_matrix(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """Return the (3, 3) float64 matrix whose rows are the rotated X, Y and Z axes (FRotationMatrix)."""
    (sp, cp), (sy, cy), (sr, cr) = ((math.sin(math.radians(a)), math.cos(math.radians(a))) for a in (pitch, yaw, roll))
    return np.array(
        [
            [cp * cy, cp * sy, sp],
            [sr * sp * cy - cr * sy, sr * sp * sy + cr * cy, -sr * cp],
            [-(cr * sp * cy + sr * sy), cy * sr - cr * sp * sy, cr * cp],
        ]
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale (n, 3) vectors to length one; a null vector stays null."""
    length = np.sqrt(dot(vectors, vectors))
    return vectors * (1 / np.maximum(length, length.dtype.type(1e-12)))[:, None]


def rows_of(values: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """Return some rows; `take` is several times as fast as indexing."""
    return values[rows] if isinstance(rows, slice) else values.take(rows, axis=0)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise inner product of (n, 3) and (n, 3) or (3,) vectors."""
    return a @ b if b.ndim == 1 else (a * b) @ np.ones(a.shape[1], a.dtype)


def blocks(count: int, size: int = 8192) -> Iterator[slice]:
    """Cut 0..count into pieces whose arrays stay in the processor's cache."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@dataclasses.dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along its X axis.

    Args:
        location: cm.
        rotation: pitch, yaw, roll in degrees.
        fov: horizontal field of view in degrees.
        width, height: pixels.
    """

    location: Triple = (-350.0, 0.0, 120.0)
    rotation: Triple = (-10.0, 0.0, 0.0)
    fov: float = 60.0
    width: int = 640
    height: int = 480

    @property
    def pixel(self) -> float:
        """Width of a pixel at distance one."""
        return 2 * math.tan(math.radians(self.fov) / 2) / self.width

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return unit directions (n, 3) float32 through image points (n,), in pixels from the top left corner."""
        plane = np.ones((len(x), 3), np.float32)
        plane[:, 1] = (x - self.width / 2) * self.pixel
        plane[:, 2] = (self.height / 2 - y) * self.pixel
        return unit(plane @ rotation_matrix(*self.rotation).astype(np.float32))

    @property
    def forward(self) -> np.ndarray:
        """The (3,) direction of view; distance times cosine with it is planar depth."""
        return rotation_matrix(*self.rotation)[0].astype(np.float32)
