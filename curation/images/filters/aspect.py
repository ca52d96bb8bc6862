"""Drop strips and banners."""

from __future__ import annotations

from pydantic import Field

from granary.curation.images.filters.quality import Measure, Quality
from granary.curation.options import Options

MEASURE = Measure("aspect", "max_aspect", "long side : short side", 1, 16, "log", "high", 3)


class Aspect(Options, frozen=True):
    """The filter's option."""

    max_aspect: float | None = Field(default=None, ge=1, description="largest ratio of long to short side")


def reason(options: Aspect, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    short, long = sorted((quality.width, quality.height))
    if options.max_aspect is None or long <= options.max_aspect * short:
        return None
    return f"max_aspect: {long / short:.2f}, more than {options.max_aspect:g}"
