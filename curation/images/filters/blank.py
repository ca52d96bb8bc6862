"""Drop pictures of one colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from granary.curation.images.filters.quality import Quality
from granary.curation.options import Options

if TYPE_CHECKING:
    import numpy as np


class Blank(Options, frozen=True):
    """The filter's option."""

    blank: float | None = Field(
        default=None, gt=0, lt=128, description="least standard deviation of grey levels (0 to 255)"
    )


def reason(options: Blank, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    if options.blank is None or quality.deviation >= options.blank:
        return None
    return f"blank: standard deviation {quality.deviation:.2f}, less than {options.blank:g}"


def deviation(counts: np.ndarray) -> np.ndarray:
    """Return the standard deviation of grey levels, (n,), given (n, 256) pixels of each level."""
    import numpy as np

    levels = np.arange(256)
    pixels = counts.sum(axis=1)
    mean = counts @ levels / pixels
    return np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / pixels)
