"""The recipe of a pack run of instructions: every option, its default and its meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from granary.curation.images.limits import DecodeLimits
from granary.curation.options import Options, RunRecipe

Task = Literal["box", "mask", "count", "question", "caption"]
Attribute = Literal["name", "texture", "position", "size"]
TASKS: tuple[Task, ...] = ("box", "mask", "count", "question", "caption")


class Groups(Options, frozen=True):
    """Groups of pictures, some of which show something of one attribute: the config `groups`."""

    count: int = Field(1000, ge=0, description="groups, shared out to the splits by their pictures; 0 makes none")
    pictures: int = Field(4, ge=2, le=16, description="of a group")
    showing: int = Field(2, ge=1, description="pictures of a group that show it; fewer than all")
    attributes: tuple[Attribute, ...] = Field(
        ("name", "texture"),
        min_length=1,
        description="by which things are alike; position is left or right, size is large or small",
    )

    @model_validator(mode="after")
    def _some_show_it(self) -> Groups:
        if self.showing >= self.pictures:
            raise ValueError(f"showing is {self.showing}; it must be below pictures, {self.pictures}")
        return self


class InstructionShards(Options, frozen=True):
    """The Parquet files of the dataset."""

    row_group: int = Field(100, ge=1, le=1000, description="most rows in a row group")
    groups: int = Field(250, ge=1, description="most groups of pictures in a shard")


class PackInstructionsRecipe(RunRecipe, frozen=True):
    """Pack instructions: what is asked of one or several pictures of other runs, and answers with boxes and masks."""

    name: str = Field("instructions", pattern=r"^[A-Za-z0-9._ -]+$", description="title of the dataset")
    licence: str = Field("unknown", description="licence of the pictures, as the Hub names it: cc-by-4.0, mit, other")
    format: Literal["instructions"] = Field(description="instructions: made of the columns of other runs")
    data: tuple[str, ...] = Field(
        min_length=1,
        description="runs of granary render or pack, paths or URLs with commas between: things with names and boxes or "
        "masks, questions, polls, captions",
    )
    out: str = Field(min_length=1, description="the run directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    tasks: tuple[Task, ...] = Field(TASKS, min_length=1, description="what is asked of a picture")
    absent: int = Field(
        1, ge=0, description="names of things that a picture does not show, asked for by box, mask and number each"
    )
    textures: tuple[str, ...] = Field(
        ("character_texture", "character2_texture"),
        description="columns with the texture of the first thing of a mask, of the second, and so on",
    )
    groups: Groups = Field(Groups(), description="several pictures at once")
    decode: DecodeLimits = Field(DecodeLimits(), description="limits on what is decoded")
    shards: InstructionShards = Field(InstructionShards(), description="output files")
