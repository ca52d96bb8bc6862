"""Drop small pictures."""

from __future__ import annotations

from pydantic import Field

from granary.curation.images.filters.quality import Measure, Quality
from granary.curation.options import Options

MEASURE = Measure("size", "min_side", "short side of the original, px", 8, 8192, "log", "low", 64)


class Size(Options, frozen=True):
    """The filter's option."""

    min_side: int | None = Field(default=None, gt=0, description="least short side of the original in pixels")


def reason(options: Size, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    if options.min_side is None or quality.size >= options.min_side:
        return None
    return f"min_side: {quality.size} px, less than {options.min_side}"
