"""What a picture looks like, in numbers: measured of every picture that is read, whether or not a filter asks for it.

Blur, dark, bright, entropy and blank are measured on a grey copy (0 to 255) squeezed to 64 x 64 pixels, never enlarged,
so that neither the size of the file nor DCT scaling decides. Many pictures are measured at once: one by one they took a
fifth of the time of reading and embedding them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from granary.curation.images.filters.blank import deviation
from granary.curation.images.filters.blur import laplacian_variance
from granary.curation.images.filters.entropy import entropy
from granary.curation.images.filters.quality import Quality

if TYPE_CHECKING:  # the options are part of a recipe, and reading one imports no decoder
    import numpy as np
    from PIL import Image

SIDE = 64


def small_copy(image: Image.Image) -> Image.Image:
    """Return the copy that is measured: 64 x 64, or less where a side of the picture is shorter."""
    from granary.curation.images.squeeze import squeezed

    return squeezed(image, min(SIDE, image.width), min(SIDE, image.height))


def measure(copies: Sequence[Image.Image], sizes: Sequence[tuple[int, int]]) -> list[Quality]:
    """Measure pictures.

    Args:
        copies: n, see `small_copy`.
        sizes: width and height of the originals in pixels.
    """
    import numpy as np

    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, copy in enumerate(copies):
        by_shape.setdefault(copy.size, []).append(number)
    found: dict[int, Quality] = {}
    for (width, height), numbers in by_shape.items():
        levels = b"".join(copies[number].convert("L").tobytes() for number in numbers)
        grey = np.frombuffer(levels, np.uint8).reshape(-1, height, width)
        columns = zip(*(column.tolist() for column in measure_grey(grey)), strict=True)
        found |= {number: Quality(*sizes[number], *row) for number, row in zip(numbers, columns, strict=True)}
    return [found[number] for number in range(len(copies))]


def measure_grey(grey: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return blur, dark, bright, entropy and deviation, each (n,), of pictures (n, h, w) uint8; see `Quality`."""
    counts = histograms(grey)
    return (
        laplacian_variance(grey),
        percentile(counts, 0.99),
        percentile(counts, 0.05),
        entropy(counts),
        deviation(counts),
    )


def histograms(grey: np.ndarray) -> np.ndarray:
    """Return (n, 256) int64: how many of the pixels (n, h, w) uint8 of each picture have each grey level."""
    import numpy as np

    places = grey.reshape(len(grey), -1) + 256 * np.arange(len(grey))[:, None]
    return np.bincount(places.ravel(), minlength=256 * len(grey)).reshape(-1, 256)


def percentile(counts: np.ndarray, share: float) -> np.ndarray:
    """Return (n,) int64: the least grey level that at least a share of the pixels do not exceed.

    Args:
        counts: (n, 256) pixels of each level.
        share: in 0..1.
    """
    below = counts.cumsum(axis=1)
    number: np.ndarray = (below < share * below[:, -1:]).sum(axis=1)
    return number
