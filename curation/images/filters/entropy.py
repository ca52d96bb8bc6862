"""Drop pictures of few grey levels, which say little."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from granary.curation.images.filters.quality import Measure, Quality
from granary.curation.options import Options

if TYPE_CHECKING:
    import numpy as np

MEASURE = Measure("entropy", "entropy", "entropy of grey levels, bits", 0, 8, "linear", "low", 4)


class Entropy(Options, frozen=True):
    """The filter's option."""

    entropy: float | None = Field(
        default=None, gt=0, lt=8, description="least entropy of the histogram of grey levels in bits"
    )


def reason(options: Entropy, quality: Quality) -> str | None:
    """Return why a picture is dropped, None to keep it."""
    if options.entropy is None or quality.entropy >= options.entropy:
        return None
    return f"entropy: {quality.entropy:.2f} bits, less than {options.entropy:g}"


def entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy in bits of (n, 256) pixels of each grey level, (n,) (Shannon 1948, section 6)."""
    import numpy as np

    shares = counts / counts.sum(axis=1, keepdims=True)
    logarithms = np.log2(np.where(shares > 0, shares, 1))
    return np.abs((shares * logarithms).sum(axis=1))
