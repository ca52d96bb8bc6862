"""Drop overexposed pictures."""

from __future__ import annotations

from pydantic import Field

from granary.curation.images.filters.quality import Measure, Quality
from granary.curation.options import Options

MEASURE = Measure("bright", "bright", "dark parts: 5th percentile of grey levels", 0, 256, "linear", "high", 160)


class Bright(Options, frozen=True):
    """The filter's option."""

    bright: int | None = Field(
        default=None, ge=0, lt=255, description="largest 5th percentile of grey levels (0 to 255), high if overexposed"
    )


def reason(options: Bright, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    if options.bright is None or quality.bright <= options.bright:
        return None
    return f"bright: 19 of 20 pixels are at least {quality.bright}, more than {options.bright}"
