"""Filters on what a picture looks like, all off by default; each drops with a reason.

Blank and blur are measured on a grey picture (0 to 255) shrunk to a short side of 128, never enlarged, so
that neither the size of the file nor DCT scaling decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from granary.curation.options import Options

if TYPE_CHECKING:  # the options are part of a recipe, and reading one imports no decoder
    import numpy as np
    from PIL import Image

    from granary.curation.images.decode import Decoded

SIDE = 128
MAX_LENGTH = 8 * SIDE  # of the long side: a strip of a picture must not cost more than a picture


class Filters(Options, frozen=True):
    """Thresholds below or above which a picture is dropped; None switches a filter off."""

    min_side: int | None = Field(default=None, gt=0, description="least short side of the original in pixels")
    max_aspect: float | None = Field(default=None, ge=1, description="largest ratio of long to short side")
    blank: float | None = Field(
        default=None, gt=0, lt=128, description="least standard deviation of grey levels (0 to 255)"
    )
    blur: float | None = Field(
        default=None,
        gt=0,
        description="least variance of the Laplacian of grey levels at short side 128",
    )

    @property
    def side(self) -> int | None:
        """Return the short side that `decode` must keep for these filters, None for any."""
        return SIDE if self.blank is not None or self.blur is not None else None

    def reject(self, decoded: Decoded) -> str | None:
        """Return why a picture is dropped, None to keep it. Raises ValueError if decoded below `side`."""
        short, long = sorted((decoded.width, decoded.height))
        if self.min_side is not None and short < self.min_side:
            return f"min_side: {short} px, less than {self.min_side}"
        if self.max_aspect is not None and long > self.max_aspect * short:
            return f"max_aspect: {long / short:.2f}, more than {self.max_aspect:g}"
        if self.side is None:
            return None
        if min(decoded.image.size) < min(SIDE, short):
            raise ValueError(f"decoded at short side {min(decoded.image.size)}; pass side={SIDE} or more to decode")
        grey = small_grey(decoded.image)
        if self.blank is not None and (deviation := float(grey.std())) < self.blank:
            return f"blank: standard deviation {deviation:.2f}, less than {self.blank:g}"
        if self.blur is not None and (variance := laplacian_variance(grey)) < self.blur:
            return f"blur: variance of the Laplacian {variance:.2f}, less than {self.blur:g}"
        return None


def small_grey(image: Image.Image) -> np.ndarray:
    """Return grey levels (h, w) float32 in 0..255 with a short side of at most 128."""
    import numpy as np
    from PIL import Image

    scale = min(1.0, SIDE / min(image.size))
    width, height = (min(MAX_LENGTH, max(1, round(length * scale))) for length in image.size)
    grey = image.convert("L")
    if (width, height) != grey.size:
        grey = grey.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(grey, dtype=np.float32)


def laplacian_variance(grey: np.ndarray) -> float:
    """Return the variance of the 4-neighbour Laplacian over the inner pixels of (h, w); low means blurred.

    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000. Infinite below 3 x 3.
    """
    if min(grey.shape) < 3:
        return float("inf")
    inner = 4 * grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - inner
    return float(laplacian.var())
