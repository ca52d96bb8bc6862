"""The planes of small copies of pictures that the built-in descriptors look at, a chunk of pictures at a time.

Every operation is elementwise, a product of two small matrices, or a sum along the last axis of contiguous rows: a row
is the same bytes whatever the other pictures of the chunk and the number of threads. Arrays of a chunk are large enough
for NumPy to leave the interpreter to other workers, and small enough for the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from granary.curation.images.squeeze import squeezed

CHUNK = 16


def by_chunks(
    describe: Callable[[Sequence[Image.Image]], np.ndarray], images: Sequence[Image.Image], dimension: int
) -> np.ndarray:
    """Describe pictures CHUNK at a time: (n, dimension) float32."""
    rows = [describe(images[start : start + CHUNK]) for start in range(0, len(images), CHUNK)]
    return np.concatenate(rows) if rows else np.empty((0, dimension), np.float32)


def luma_chroma(images: Sequence[Image.Image], side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squeeze pictures to a square and split them into luminance and chroma (ITU-R BT.601).

    Args:
        images: n of any size.
        side: of the square, in pixels.

    Returns:
        Y, Cb and Cr, each (n, side, side) float32, chroma around 0.
    """
    coloured = (image if image.mode == "RGB" else image.convert("RGB") for image in images)
    small = [np.asarray(squeezed(image, side, side)) for image in coloured]
    r, g, b = np.ascontiguousarray(np.moveaxis(np.stack(small), -1, 0), np.float32)
    luma = np.float32(0.299) * r + np.float32(0.587) * g + np.float32(0.114) * b
    return luma, np.float32(0.564) * (b - luma), np.float32(0.713) * (r - luma)


def gradient(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return length and direction of the luminance gradient after a 3 x 3 binomial blur.

    Args:
        luma: (n, h, w) float32.

    Returns:
        length: |g| (n, h, w) float32.
        direction: e^(i theta) (n, h, w) complex64, whose modulus falls to 0 where |g| does, so that noise in flat
            areas has no direction.
    """
    padded = np.pad(luma, ((0, 0), (2, 2), (2, 2)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16  # (n, h + 2, w + 2)
    slope = np.empty(luma.shape, np.complex64)
    slope.real = smooth[:, 1:-1, 2:] - smooth[:, 1:-1, :-2]
    slope.imag = smooth[:, 2:, 1:-1] - smooth[:, :-2, 1:-1]
    slope /= 2
    length = np.abs(slope)
    return length, slope / (length + np.float32(0.3))


def row_sums(values: np.ndarray) -> np.ndarray:
    """Sum all but the first axis: (n, ...) -> (n,)."""
    return np.add.reduce(np.ascontiguousarray(values).reshape(len(values), -1), axis=1)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows (n, d) to length 1; zero stays zero."""
    return rows / np.maximum(np.sqrt(row_sums(rows * rows)), 1e-6)[:, None].astype(rows.dtype)
