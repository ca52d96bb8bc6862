"""Smooth random fields, the same on every machine for the same seed."""

from __future__ import annotations

import numpy as np


def tiled_noise(height: int, width: int, rows: int, columns: int, seed: int) -> np.ndarray:
    """Return a (height, width) float32 field in about -1..1 that repeats, with `rows` x `columns` random knots.

    Knots are blended by cubic B-splines, one matrix product per axis.
    """
    knots = np.random.default_rng(seed).uniform(-1, 1, (rows, columns)).astype(np.float32)
    # A B-spline shrinks the range of white noise by about 2/3 per axis.
    return _spline(height, rows) @ knots @ _spline(width, columns).T * np.float32(1.8)


def tiled_fractal(
    height: int, width: int, cells: int, octaves: int, seed: int, gain: float = 0.5, aspect: float = 1.0
) -> np.ndarray:
    """Sum octaves of `tiled_noise`, each twice as fine and `gain` as strong; `aspect` stretches along the rows."""
    total, strength = np.zeros((height, width), np.float32), 1.0
    for octave in range(octaves):
        count = cells << octave
        columns = max(2, min(width, round(count * width / height / aspect)))
        total += strength * tiled_noise(height, width, min(height, count), columns, seed + octave)
        strength *= gain
    return total


def noise(points: np.ndarray, seed: int) -> np.ndarray:
    """Value noise in space: (n, 3) points to (n,) float32 in -1..1, one random value per unit cell, smoothed."""
    cell = np.floor(points).astype(np.int64)
    f = (points - cell).astype(np.float32)
    f = f * f * (3 - 2 * f)
    total = np.zeros(len(points), np.float32)
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(np.array(corner, bool), f, 1 - f), axis=1)
        total += weight * _hash(cell + np.array(corner), seed)
    return total


def fractal(points: np.ndarray, octaves: int, seed: int, gain: float = 0.5) -> np.ndarray:
    """Sum octaves of `noise`, each twice as fine and `gain` as strong."""
    return sum(
        (np.float32(gain**octave) * noise(points * 2**octave, seed + octave) for octave in range(octaves)),
        start=np.zeros(len(points), np.float32),
    )


def cells(points: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Worley's cells: distances (n,) of points to the nearest and the second nearest of one random point per cell."""
    base = np.floor(points).astype(np.int64)
    nearest = np.full((2, len(points)), np.inf, np.float32)
    for offset in np.ndindex(3, 3, 3):
        cell = base + np.array(offset) - 1
        jitter = np.stack([_hash(cell, seed + axis) for axis in range(3)], axis=1) * 0.5 + 0.5
        distance = np.linalg.norm(points - cell - jitter, axis=1).astype(np.float32)
        nearest = np.sort(np.vstack([nearest, distance]), axis=0)[:2]
    return nearest[0], nearest[1]


def smoothstep(low: float, high: float, values: np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _hash(cell: np.ndarray, seed: int) -> np.ndarray:
    """Map (n, 3) integers to (n,) float32 in -1..1."""
    x = (cell[:, 0] * 73856093) ^ (cell[:, 1] * 19349663) ^ (cell[:, 2] * 83492791) ^ (seed * 2654435761)
    x = (x ^ (x >> 13)) * 1274126177 & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 2246822519 & 0xFFFFFFFF
    return ((x ^ (x >> 16)) / np.float64(2**31) - 1).astype(np.float32)


def _spline(size: int, knots: int) -> np.ndarray:
    """(size, knots) float32 weights of a periodic cubic B-spline."""
    position = np.arange(size) * knots / size
    base, t = np.floor(position).astype(int), position % 1
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    matrix = np.zeros((size, knots), np.float32)
    for tap in range(4):
        np.add.at(matrix, (np.arange(size), (base + tap - 1) % knots), weights[tap])
    return matrix
