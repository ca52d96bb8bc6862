"""Colours: from sRGB, as people write and files store them, to linear light."""

from __future__ import annotations

import numpy as np


def linear(colour: str) -> np.ndarray:
    """Turn a hex colour (sRGB) into (3,) float64 linear values."""
    return srgb_to_linear(np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255)


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """Turn sRGB values in 0..1 into linear light, in the precision they have (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
