"""What is measured of a picture, and how a report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Quality(NamedTuple):
    """What was measured of one picture.

    Args:
        width: pixels of the original, upright.
        height: likewise.
        blur: variance of the Laplacian of grey levels; infinite below 3 x 3 pixels.
        dark: 99th percentile of grey levels, 0 to 255: all but a hundredth of the picture is no brighter.
        bright: 5th percentile of grey levels: all but a twentieth is no darker.
        entropy: of the histogram of grey levels in bits, 0 to 8.
        deviation: standard deviation of grey levels.
    """

    width: int
    height: int
    blur: float
    dark: int
    bright: int
    entropy: float
    deviation: float

    @property
    def size(self) -> int:
        """The short side of the original in pixels."""
        return min(self.width, self.height)

    @property
    def aspect(self) -> float:
        """The ratio of the long to the short side."""
        return max(self.width, self.height) / self.size


@dataclass(frozen=True)
class Measure:
    """One number of `Quality` as a report shows it.

    Args:
        name: of the number.
        option: of the filter that it decides.
        title: what it is, for people.
        low: the least value that a histogram tells apart.
        high: the largest.
        scale: of its axis.
        worse: the end where pictures are bad.
        recommended: limit of the filter; see docs/curate.md for how it was measured.
    """

    name: str
    option: str
    title: str
    low: float
    high: float
    scale: Literal["linear", "log"]
    worse: Literal["low", "high"]
    recommended: float
