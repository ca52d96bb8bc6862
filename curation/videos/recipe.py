"""The recipe of a pack run of videos: every option, its default and its meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from granary.curation.options import Options, RunRecipe
from granary.curation.videos.limits import VideoLimits
from granary.curation.videos.shots import Shots

VideoFormat = Literal["coin", "crosstask", "epic", "goalstep", "lines", "shots"]


class VideoShards(Options, frozen=True):
    """The Parquet files of the dataset."""

    row_group: int = Field(4, ge=1, le=1000, description="most videos in a row group")
    poster: int = Field(256, ge=16, le=2048, description="longer side of the picture of a video, in pixels")


class PackVideosRecipe(RunRecipe, frozen=True):
    """Pack videos: original bytes, frames and their times, clips from annotated steps or changes of shot."""

    name: str = Field("videos", pattern=r"^[A-Za-z0-9._ -]+$", description="title of the dataset")
    licence: str = Field("unknown", description="licence of the videos, as the Hub names it: cc-by-4.0, mit, other")
    format: VideoFormat = Field(
        description="coin, crosstask, epic (EPIC-KITCHENS-100), goalstep (Ego4D), lines (JSON, a video a line): clips "
        "are the steps; shots: all videos, cut where the picture changes"
    )
    annotations: str = Field("", description="file or folder of the annotations, a path or URL; none for shots")
    videos: str = Field(min_length=1, description="folder of the videos; a file is named like its video, any ending")
    out: str = Field(min_length=1, description="the run directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides nothing here; a run has one")
    unit_rows: int = Field(8, ge=1, description="videos in one work unit, and in a shard at most")
    max_unreadable: float = Field(
        0.2, ge=0, le=1, description="stop when connections or permissions fail for more of a unit; 1: never"
    )
    decode: VideoLimits = Field(VideoLimits(), description="limits on what is decoded")
    shots: Shots = Field(Shots(), description="where videos without annotated steps are cut")
    shards: VideoShards = Field(VideoShards(), description="output files")

    @model_validator(mode="after")
    def _annotated(self) -> PackVideosRecipe:
        if (self.format == "shots") == bool(self.annotations):
            need = "takes no annotations; leave them out" if self.annotations else "needs --annotations"
            raise ValueError(f"format: {self.format} {need}")
        return self
