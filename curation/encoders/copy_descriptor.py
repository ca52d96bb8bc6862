"""builtin:copy: a copy detector without weights, for pictures of the same shot differently processed.

The picture is squeezed to 64 x 64 and turned into maps: luminance, two chroma planes, and the harmonics of the
luminance gradient g = |g| e^(i theta),

    h_m = |g|^(1/2) e^(i m theta),   m = 0, 1, 2, 4   (edge strength, direction, and orientation mod 180, 90 degrees)

Each map is faded out towards the border, since crops, frames and shifts change the border first, and its
low DCT coefficients (u, v with u + v < K) are kept. Natural spectra fall like 1/f, so coefficients are multiplied by
f^(1/2), and a signed power 0.4 keeps the few strongest from deciding the cosine. Every map's coefficients become a
unit vector with a fixed weight. What has hardly any contrast is described by its mean colour instead, so a blank
picture is a unit vector near other blanks of its colour and nearly orthogonal to textured pictures.

Measured by `python -m tests.benchmarks.copies` (percent found, or pictures removed, at a threshold of the cosine):

    threshold                                            0.80   0.825  0.85   0.875  0.90   0.95
    300 photos: JPEG q20, tone, saturation, grey, 96 px  100    100    100    100    100    95
    64 px thumbnail, crop 4%, rotated 2 degrees          100    100    100    100    100    98
    crop 8% / 15% in the middle                          100/96 100/90 100/78 100/56 98/30  69/1
    crop 8%, one corner kept                             51     26     15     3      1      0
    label over 4% of the picture / black frame 5%        99/99  99/97  97/94  93/87  86/73  44/14
    CIFAR-10 20,000: known near pairs linked (of 164)    85     81     76     70     54     16
    CIFAR-10 20,000: removed, in no listed pair          247    202    174    134    99     31
    1,000 distinct photos removed (largest cosine 0.63)  0      0      0      0      0      0
    1,797 digits of 8 x 8 pixels: removed / largest      1034   791    481    253    101    1
      component                                          /163   /140   /115   /61    /14    /2

(95 and 98 are the lowest of the row's edits.) Looked at by eye, the unlisted CIFAR-10 pairs are mostly true duplicates:
all of 60 sampled above 0.875, about 28 of 30 at 0.85-0.875, 25 of 30 at 0.80-0.825, where horses and planes of alike
pose begin to join. Hence the defaults: 0.875 for copies, 0.8 for leaks, where a wrong removal costs less than a leak.
Small drawings on plain ground want 0.9 or more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from granary.curation.encoders.planes import by_chunks, gradient, luma_chroma, row_sums, unit

REVISION = "copy-1"
SIDE = 64
BANDS = {"luma": 10, "chroma": 4, "harmonic": 7}
WEIGHTS = {"luma": 0.7, "chroma": 0.7, "h0": 0.7, "h1": 0.7, "h2": 1.0, "h4": 0.9}
POWER = 0.4
WHITENING = 0.5
BLANK_CONTRAST = 1.5  # standard deviation, in grey levels, at which contrast and mean colour weigh the same
FAINT_CHROMA = 60.0  # root mean square of the chroma coefficients at which chroma has half its weight


def _basis(size: int, count: int) -> np.ndarray:
    """Return the first `count` rows of the orthonormal DCT-II matrix: (count, size) float32."""
    k, x = np.arange(count)[:, None], np.arange(size)[None]
    rows = np.sqrt(2 / size) * np.cos(np.pi * (x + 0.5) * k / size)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


class _Band:
    """The triangle u + v < size of the spectrum, with its whitening weights."""

    def __init__(self, size: int, mean: bool) -> None:
        u, v = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
        kept = (u + v < size) & (mean | (u + v > 0))
        self.u, self.v = u[kept], v[kept]
        self.weight = np.maximum(np.hypot(self.u, self.v), WHITENING).astype(np.float32) ** WHITENING

    def __call__(self, spectra: np.ndarray) -> np.ndarray:
        """Whiten and flatten: (n, maps, K, K) -> (n, maps * coefficients)."""
        return (spectra[:, :, self.u, self.v] * self.weight).reshape(len(spectra), -1)


def _compressed_unit(coefficients: np.ndarray) -> np.ndarray:
    """Apply the signed power and scale rows to length 1; zero stays zero."""
    compressed = np.sign(coefficients) * np.abs(coefficients) ** np.float32(POWER)
    return unit(compressed)


class CopyDescriptor:
    """The encoder `builtin:copy`: RGB pictures of any size to (n, 273) float32 unit rows.

    A row is the same bytes whatever the batch and the number of threads.
    """

    name = "builtin:copy"
    side: int | None = SIDE
    squeezes = True
    copy_threshold = 0.875
    leak_threshold = 0.8

    def __init__(self) -> None:
        self.basis = _basis(SIDE, max(BANDS.values()))
        fade = np.sin(np.pi * (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE)
        self.window = np.outer(fade, fade).astype(np.float32)
        self.luma_band = _Band(BANDS["luma"], mean=False)
        self.chroma_band = _Band(BANDS["chroma"], mean=True)
        self.strength_band = _Band(BANDS["harmonic"], mean=False)
        self.harmonic_band = _Band(BANDS["harmonic"], mean=True)
        self.dimension = self._describe([Image.new("RGB", (1, 1))]).shape[1]
        formula = (REVISION, SIDE, BANDS, WEIGHTS, POWER, WHITENING, BLANK_CONTRAST, FAINT_CHROMA)
        self.fingerprint = hashlib.sha256(repr(formula).encode()).hexdigest()

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, dimension) float32 unit rows for n RGB pictures."""
        return by_chunks(self._describe, images, self.dimension)

    def _describe(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Describe a chunk of n pictures: (n, dimension) float32 unit rows."""
        luma, blue, red = luma_chroma(images, SIDE)
        mean = self._windowed_mean(luma)
        contrast = (luma - mean[:, None, None]) * self.window
        variance = row_sums(contrast * contrast) / np.sum(self.window * self.window)
        textured = (variance / (variance + np.float32(BLANK_CONTRAST**2)))[:, None]
        parts = [
            textured * self._luma_part(contrast),
            textured * self._gradient_part(luma),
            self._chroma_part(blue, red),
            (1 - textured) * self._blank_part(mean, blue, red),
        ]
        return unit(np.concatenate(parts, axis=1))

    def _spectra(self, maps: np.ndarray, size: int) -> np.ndarray:
        """Return the (n, maps, size, size) lowest DCT coefficients of maps (n, maps, SIDE, SIDE)."""
        basis = self.basis[:size]
        return basis @ (maps @ basis.T)

    def _luma_part(self, contrast: np.ndarray) -> np.ndarray:
        spectra = self._spectra(contrast[:, None], BANDS["luma"])
        return WEIGHTS["luma"] * _compressed_unit(self.luma_band(spectra))

    def _chroma_part(self, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
        spectra = self._spectra(np.stack([blue, red], axis=1) * self.window, BANDS["chroma"])
        coefficients = self.chroma_band(spectra)
        strength = np.sqrt(row_sums(coefficients * coefficients) / coefficients.shape[1])[:, None]
        share = strength / (strength + np.float32(FAINT_CHROMA))
        return WEIGHTS["chroma"] * share * _compressed_unit(coefficients)

    def _gradient_part(self, luma: np.ndarray) -> np.ndarray:
        length, direction = gradient(luma)
        strength = np.sqrt(length)
        edges = (strength - self._windowed_mean(strength)[:, None, None]) * self.window
        spectra = self._spectra(edges[:, None], BANDS["harmonic"])
        parts = [WEIGHTS["h0"] * _compressed_unit(self.strength_band(spectra))]
        strength = strength * self.window
        for order in (1, 2, 4):
            harmonic = strength * direction  # e^(i order theta)
            spectra = self._spectra(np.stack([harmonic.real, harmonic.imag], axis=1), BANDS["harmonic"])
            parts.append(WEIGHTS[f"h{order}"] * _compressed_unit(self.harmonic_band(spectra)))
            direction = direction * direction
        return np.concatenate(parts, axis=1)

    def _blank_part(self, luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
        """Return mean colours as unit rows of 4: black and white are opposed, near colours are near."""
        colour = [np.full_like(luma, 64), luma - 128, self._windowed_mean(blue), self._windowed_mean(red)]
        return unit(np.stack(colour, axis=1))

    def _windowed_mean(self, planes: np.ndarray) -> np.ndarray:
        return row_sums(planes * self.window) / np.sum(self.window)
