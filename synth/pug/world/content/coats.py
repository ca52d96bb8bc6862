"""Patterns of fur and skin, as shares 0..1 of a second colour at points of a surface."""

from __future__ import annotations

import numpy as np

from granary.synth.pug.world.shapes.colours import linear
from granary.synth.pug.world.shapes.noise import cells, fractal, smoothstep


def paint(colours: np.ndarray, share: np.ndarray, colour: str) -> np.ndarray:
    """Mix (n, 3) colours with a hex colour by (n,) shares."""
    amount = np.asarray(share, np.float32)[:, None]
    return colours * (1 - amount) + linear(colour).astype(np.float32) * amount


def tinted(points: np.ndarray, colours: np.ndarray, size: float, strength: float, seed: int) -> np.ndarray:
    """Vary the brightness of colours in blotches of `size` cm."""
    return colours * (1 + strength * fractal(points / size, 3, seed))[:, None]


def stripes(points: np.ndarray, along: np.ndarray, period: float, warp: float, seed: int) -> np.ndarray:
    """Stripes across the coordinate `along` (n,), bent by noise of `warp` cm."""
    bent = along + warp * fractal(points / 14, 2, seed)
    wave = np.sin(2 * np.pi * bent / period) + 0.35 * fractal(points / 9, 2, seed + 3)
    return smoothstep(-0.12, 0.22, wave)


def patches(points: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Angular patches of `size` cm with light seams, as a giraffe has them."""
    nearest, second = cells(points / (size * 1.6) + 0.15 * fractal(points / 9, 2, seed + 7)[:, None], seed)
    return smoothstep(0.08, 0.16, second - nearest)


def spots(points: np.ndarray, size: float, seed: int, cover: float = 0.0) -> np.ndarray:
    """Large soft-edged blots; more of them for a smaller `cover`."""
    return smoothstep(cover, cover + 0.05, fractal(points / size, 3, seed, 0.4))


def bands(along: np.ndarray, period: float, width: float) -> np.ndarray:
    """Thin lines every `period` cm that cover a share `width`."""
    phase = np.abs(along / period % 1 - 0.5) * 2
    return smoothstep(1 - 1.6 * width, 1 - 0.6 * width, phase)
