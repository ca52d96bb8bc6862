"""Filters on what a picture looks like, all off by default; each drops with a reason. One filter, one file."""

from __future__ import annotations

from granary.curation.images.filters import aspect, blank, blur, bright, dark, entropy, size
from granary.curation.images.filters.measures import SIDE, measure, small_copy
from granary.curation.images.filters.quality import Measure, Quality

__all__ = ["MEASURES", "SIDE", "Filters", "Measure", "Quality", "measure", "small_copy"]

REASONS = (size.reason, aspect.reason, blank.reason, blur.reason, dark.reason, bright.reason, entropy.reason)
MEASURES: tuple[Measure, ...] = (
    *(size.MEASURE, aspect.MEASURE, blur.MEASURE),
    *(dark.MEASURE, bright.MEASURE, entropy.MEASURE),
)


class Filters(size.Size, aspect.Aspect, blank.Blank, blur.Blur, dark.Dark, bright.Bright, entropy.Entropy, frozen=True):
    """Thresholds below or above which a picture is dropped; None switches a filter off."""

    def reject(self, quality: Quality) -> str | None:
        """Return why a picture is dropped, None to keep it."""
        return next((why for reason in REASONS if (why := reason(self, quality)) is not None), None)
