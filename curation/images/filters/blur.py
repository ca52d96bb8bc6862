"""Drop blurred pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from granary.curation.images.filters.quality import Measure, Quality
from granary.curation.options import Options

if TYPE_CHECKING:
    import numpy as np

MEASURE = Measure("blur", "blur", "sharpness: variance of the Laplacian", 1, 65536, "log", "low", 150)


class Blur(Options, frozen=True):
    """The filter's option."""

    blur: float | None = Field(default=None, gt=0, description="least variance of the Laplacian of grey levels")


def reason(options: Blur, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    if options.blur is None or quality.blur >= options.blur:
        return None
    return f"blur: variance of the Laplacian {quality.blur:.2f}, less than {options.blur:g}"


def laplacian_variance(grey: np.ndarray) -> np.ndarray:
    """Return the variance of the 4-neighbour Laplacian over the inner pixels, (n,); low means blurred.

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000. Infinite below 3 x 3 pixels. Sums are
    of whole numbers, so the same on every machine.

    Args:
        grey: (n, h, w) uint8.
    """
    import numpy as np

    if min(grey.shape[1:]) < 3:
        return np.full(len(grey), np.inf)
    levels = grey.astype(np.int16)
    laplacian = levels[:, :-2, 1:-1] + levels[:, 2:, 1:-1]
    laplacian += levels[:, 1:-1, :-2]
    laplacian += levels[:, 1:-1, 2:]
    laplacian -= 4 * levels[:, 1:-1, 1:-1]
    flat = laplacian.reshape(len(grey), -1).astype(np.float64)
    variance: np.ndarray = (flat * flat).mean(axis=1) - flat.mean(axis=1) ** 2
    return variance
