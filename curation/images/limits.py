"""What an image may cost: a part of every recipe, so that reading one imports no decoder."""

from __future__ import annotations

from pydantic import Field

from granary.curation.options import Options


class DecodeLimits(Options, frozen=True):
    """What an image may cost; anything above is refused before it is decoded."""

    max_pixels: int = Field(
        default=100_000_000, gt=0, le=2 * 89_478_485,
        description="width times height; AVIF and WebP may have half of it, JPEG 2000 a quarter",
    )  # fmt: skip
    max_bytes: int = Field(default=268_435_456, gt=0, description="size of the file")
    max_frames: int = Field(
        default=1000,
        gt=0,
        description="pages or frames of an animation; only the first is used, longer is refused",
    )
