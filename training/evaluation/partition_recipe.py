"""What `granary partition` is told; read without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from granary.curation.options import Options
from granary.training.data.table import Table


class PartitionRecipe(Options, frozen=True):
    """Write a dataset again with a column `part`: A and B for two trainings, S for both, X for neither."""

    data: Table = Field(description="a run, its dataset, or any Parquet files with pictures; a path or URL")
    out: str = Field(min_length=1, description="the run directory to write; it must be new")
    per_class: int = Field(ge=1, description="pictures of each class in a training set: in A with S, and in B with S")
    largest: int | None = Field(
        None, ge=1, description="per_class of the largest partition that is compared with this one: X is that of it"
    )
    split: str | None = Field(None, description="take the pictures of this split alone; the others get no part")
    boxes: str | None = Field(
        None,
        description="column of boxes; default: boxes, objects or masks, where there is one. A and B have pictures with "
        "boxes alone, all pictures where there are none",
    )
    copies: Literal["remove", "keep"] = Field(
        "remove", description="near copies but for one get no part, or that of the one: they are never in two"
    )
    encoder: str = Field("builtin:copy", description="descriptor that near copies are found by")
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="cosine above which two pictures are near copies; default: the encoder's of leaks",
    )
    mirror: bool = Field(True, description="whether mirror images are near copies too: trainings see them")
    seed: int = Field(0, ge=0, lt=2**63, description="decides the draw")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    batch: int = Field(64, ge=1, description="pictures per call of the encoder")

    @field_validator("data", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nested(self) -> PartitionRecipe:
        if self.largest is not None and self.largest < self.per_class:
            raise ValueError(f"largest is {self.largest}; it must be per_class, {self.per_class}, or more")
        return self
