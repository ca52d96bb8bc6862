"""builtin:layout: a descriptor for retrieval without weights: layout, colour and texture.

Four parts of a 64 x 64 copy, each of length 1 before its weight:

- layout: mean luminance and chroma of the cells of a 4 x 4 grid;
- colour: square root of a soft histogram over 4 luminance x 6 x 6 chroma bins (Hellinger);
- shape: gradient-orientation histograms, 8 orientations mod 180 degrees in the cells of a 4 x 4 grid;
- texture: rotation-invariant uniform local binary patterns (Ojala, Pietikainen, Maenpaa 2002, section 2) at three
  scales.

Measured by `python -m tests.benchmarks.copies`: mean average precision and precision at 1 for the same subject among
105 photographs of 20 subjects, accuracy of 20 nearest neighbours on CIFAR-10 (6,000 known, 1,000 asked):

                    subject mAP   P@1     CIFAR-10
    builtin:layout  0.396         0.495   0.562
    8 x 8 pixels    0.305         0.343   0.415
    mean colour     0.245         0.229   0.202

The copy and leak thresholds are no more than a guard for users who deduplicate in this space: use builtin:copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image

from granary.curation.encoders.planes import by_chunks, gradient, luma_chroma, row_sums, unit

REVISION = "layout-1"
SIDE = 64
GRID = 4
ORIENTATIONS = 8
BINS = (4, 6, 6)
SCALES = 3
WEIGHTS = {"layout": 1.0, "colour": 1.0, "shape": 1.0, "texture": 0.5}
PATTERN_MARGIN = 2.0  # grey levels a neighbour must exceed the centre by, so that noise makes no pattern
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


class LayoutDescriptor:
    """The encoder `builtin:layout`: RGB pictures of any size to (n, 350) float32 unit rows.

    A row is the same bytes whatever the batch and the number of threads.
    """

    name = "builtin:layout"
    side: int | None = SIDE
    squeezes = True
    copy_threshold = 0.97
    leak_threshold = 0.95

    def __init__(self) -> None:
        centres = (np.arange(GRID) + 0.5) * SIDE / GRID - 0.5
        tent = np.maximum(0, 1 - np.abs(np.arange(SIDE) - centres[:, None]) * GRID / SIDE)
        self.tents = (tent / tent.sum(axis=1, keepdims=True)).astype(np.float32)  # (GRID, SIDE)
        turns = np.exp(-2j * np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS)
        self.turns = turns.astype(np.complex64)[:, None, None]
        self.dimension = self._describe([Image.new("RGB", (1, 1))]).shape[1]
        formula = (REVISION, SIDE, GRID, ORIENTATIONS, BINS, SCALES, WEIGHTS, PATTERN_MARGIN)
        self.fingerprint = hashlib.sha256(repr(formula).encode()).hexdigest()

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows for n RGB pictures."""
        return by_chunks(self._describe, images, self.dimension)

    def _describe(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Describe a chunk of n pictures: (n, dimension) float32 unit rows."""
        luma, blue, red = luma_chroma(images, SIDE)
        parts = {
            "layout": _cell_means(luma, blue, red),
            "colour": _colour_histograms(luma, blue, red),
            "shape": self._orientation_histograms(luma),
            "texture": _pattern_histograms(luma),
        }
        rows = [WEIGHTS[part] * unit(row) for part, row in parts.items()]
        return unit(np.concatenate(rows, axis=1)).astype(np.float32)

    def _orientation_histograms(self, luma: np.ndarray) -> np.ndarray:
        """Return the root of the gradient energy per orientation and cell: (n, ORIENTATIONS * GRID * GRID)."""
        length, direction = gradient(luma)
        doubled = (direction * direction)[:, None]
        aligned = np.maximum(doubled.real * self.turns.real - doubled.imag * self.turns.imag, 0)  # cos 2(theta - phi)
        energy = self.tents @ (length[:, None] * aligned * aligned @ self.tents.T)  # (n, ORIENTATIONS, GRID, GRID)
        return _centred(np.sqrt(energy + np.float32(0.1)).reshape(len(luma), -1))


def _centred(rows: np.ndarray) -> np.ndarray:
    """Subtract from each row (n, d) its mean."""
    return rows - (row_sums(rows) / rows.shape[1])[:, None]


def _cell_means(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Return the mean luminance around mid grey and twice the chroma of each cell: (n, 3 * GRID * GRID)."""
    planes = np.stack([luma - 128, 2 * blue, 2 * red], axis=1)
    cells = planes.reshape(-1, GRID, SIDE // GRID, GRID, SIDE // GRID).transpose(0, 1, 3, 2, 4)
    means = row_sums(cells.reshape(-1, (SIDE // GRID) ** 2)) / (SIDE // GRID) ** 2
    return means.reshape(len(luma), -1)


def _colour_histograms(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Return the root of the histograms of Y, Cb, Cr with linear interpolation between bins: (n, product(BINS))."""
    quarter = (slice(None), slice(None, None, 2), slice(None, None, 2))  # every fourth pixel tells as much
    stretched = [luma[quarter] / 255, _stretched(blue[quarter]), _stretched(red[quarter])]
    places = [value.reshape(len(luma), -1) * (bins - 1) for value, bins in zip(stretched, BINS, strict=True)]
    below = [np.minimum(place.astype(np.int64), bins - 2) for place, bins in zip(places, BINS, strict=True)]
    above_share = [place - low for place, low in zip(places, below, strict=True)]
    histogram = np.zeros((len(luma), int(np.prod(BINS))))
    for corner in product((0, 1), repeat=3):
        shares = [part if up else 1 - part for part, up in zip(above_share, corner, strict=True)]
        y, b, r = (low + up for low, up in zip(below, corner, strict=True))
        cells = (y * BINS[1] + b) * BINS[2] + r
        histogram += _counts(cells, histogram.shape[1], shares[0] * shares[1] * shares[2])
    return np.sqrt(histogram / row_sums(histogram)[:, None])


def _counts(values: np.ndarray, bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Count, or add up the weights of, the values 0..bins - 1 of each row: (n, m) -> (n, bins) float64."""
    shifted = values + bins * np.arange(len(values))[:, None]
    flat = None if weights is None else weights.ravel()
    return np.bincount(shifted.ravel(), flat, bins * len(values)).reshape(len(values), bins)


def _stretched(chroma: np.ndarray) -> np.ndarray:
    """Map chroma to 0..1 through a signed root: most natural colours are dull, and the bins are spent on them."""
    return np.clip(0.5 + 0.55 * np.sign(chroma) * np.sqrt(np.abs(chroma) / 128), 0, 1)


def _pattern_histograms(luma: np.ndarray) -> np.ndarray:
    """Return the root of the frequencies of the 10 uniform patterns, less their mean, per scale: (n, 10 * SCALES)."""
    rows = []
    for _ in range(SCALES):
        patterns = _patterns(luma).reshape(len(luma), -1)
        rows.append(np.sqrt(_counts(patterns, 10) / luma[0].size))
        luma = (luma[:, ::2, ::2] + luma[:, 1::2, ::2] + luma[:, ::2, 1::2] + luma[:, 1::2, 1::2]) / 4
    return _centred(np.concatenate(rows, axis=1))


def _patterns(luma: np.ndarray) -> np.ndarray:
    """Return each inner pixel's pattern: brighter neighbours (0..8) where they are contiguous on the ring, else 9."""
    _, height, width = luma.shape
    centre = luma[:, 1:-1, 1:-1] + np.float32(PATTERN_MARGIN)
    ring = [luma[:, 1 + y : height - 1 + y, 1 + x : width - 1 + x] > centre for y, x in RING]
    brighter = np.zeros(centre.shape, np.int8)
    changes = np.zeros(centre.shape, np.int8)
    for before, here in zip([ring[-1], *ring[:-1]], ring, strict=True):
        brighter += here
        changes += here != before
    return np.where(changes <= 2, brighter, 9)
