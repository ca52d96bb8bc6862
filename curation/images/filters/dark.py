"""Drop underexposed pictures."""

from __future__ import annotations

from pydantic import Field

from granary.curation.images.filters.quality import Measure, Quality
from granary.curation.options import Options

MEASURE = Measure("dark", "dark", "bright parts: 99th percentile of grey levels", 0, 256, "linear", "low", 100)


class Dark(Options, frozen=True):
    """The filter's option."""

    dark: int | None = Field(
        default=None, gt=0, le=255, description="least 99th percentile of grey levels (0 to 255), low in the dark"
    )


def reason(options: Dark, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    if options.dark is None or quality.dark >= options.dark:
        return None
    return f"dark: 99 of 100 pixels are at most {quality.dark}, less than {options.dark}"
