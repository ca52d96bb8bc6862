"""The planes of a small copy of a picture that the built-in descriptors look at."""

from __future__ import annotations

import numpy as np
from PIL import Image


def luma_chroma(image: Image.Image, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squeeze a picture to a square and split it into luminance and chroma (ITU-R BT.601).

    image: any size; side: pixels. Returns Y, Cb, Cr, each (side, side) float32 in grey levels, chroma around 0.
    """
    small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    r, g, b = (np.asarray(channel, np.float32) for channel in small.split())
    luma = np.float32(0.299) * r + np.float32(0.587) * g + np.float32(0.114) * b
    return luma, np.float32(0.564) * (b - luma), np.float32(0.713) * (r - luma)


def gradient(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return length and direction of the luminance gradient after a 3 x 3 binomial blur.

    luma: (h, w) float32. Returns the length |g| (h, w) float32 and e^(i theta) (h, w) complex64, whose modulus
    falls to 0 where |g| does, so that noise in flat areas has no direction.
    """
    padded = np.pad(luma, 2, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16  # (h + 2, w + 2)
    slope = np.empty(luma.shape, np.complex64)
    slope.real = smooth[1:-1, 2:] - smooth[1:-1, :-2]
    slope.imag = smooth[2:, 1:-1] - smooth[:-2, 1:-1]
    slope /= 2
    length = np.abs(slope)
    return length, slope / (length + np.float32(0.3))


def unit(row: np.ndarray) -> np.ndarray:
    """Scale a vector to length 1; zero stays zero."""
    return row / max(float(np.sqrt(np.sum(row * row))), 1e-6)
