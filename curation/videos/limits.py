"""What a video may cost: a part of recipes, so that reading one imports no decoder."""

from __future__ import annotations

from pydantic import Field

from granary.curation.options import Options


class VideoLimits(Options, frozen=True):
    """What a video may cost; anything above is refused, before it is decoded where the file says so itself."""

    max_bytes: int = Field(default=2 << 30, gt=0, description="size of the file")
    max_pixels: int = Field(default=40_000_000, gt=0, description="width times height of a frame")
    max_frames: int = Field(default=500_000, gt=0, description="frames that are decoded of one video")
    max_seconds: float = Field(default=14_400, gt=0, description="length of a video")
    max_streams: int = Field(default=32, gt=0, description="streams of a file: pictures, sounds, subtitles, data")
