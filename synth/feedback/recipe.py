"""The recipe of a sampling run: every option, its default and its meaning, in one place."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from granary.curation.images.limits import DecodeLimits
from granary.curation.options import Options, RunRecipe, named_sources
from granary.curation.sources import Source
from granary.curation.values import Sentence
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.prompts import check_template


class Groups(Options, frozen=True):
    """What divides a class, for example the context of NICO++."""

    by: Literal["none", "source", "path", "metadata"] = Field(
        "none", description="where the group is told: the source's name, the path, or a key of the metadata"
    )
    pattern: str = Field(
        "", description="path: regular expression on the uri with (?P<group>...), and (?P<class>...) where labels lack"
    )
    key: str = Field("", description="metadata: the key of the JSON that holds the group")

    @model_validator(mode="after")
    def _complete(self) -> Groups:
        try:
            named = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        if self.by == "path" and "group" not in named:
            raise ValueError("pattern must hold (?P<group>...) when groups come from the path")
        if self.by == "metadata" and not self.key:
            raise ValueError("key must name the group's key when groups come from the metadata")
        return self


class FillOptions(Options, frozen=True):
    """How many samples of what."""

    fill: int | None = Field(
        None, ge=1, description="fill each class, or class in a group, up to this many; default: the largest count"
    )
    groups: Groups = Field(Groups(), description="fill classes within groups")
    empty_cells: bool = Field(False, description="fill pairs of a class and a group that no real picture has, too")
    templates: tuple[Sentence, ...] = Field(
        ("a photo of a {class}",), min_length=1, description="prompts with {class} and {group}; a hash chooses one"
    )
    names: dict[str, str] = Field({}, description="label of the dataset: name that the models and prompts use")

    @field_validator("templates")
    @classmethod
    def _known_fields(cls, templates: tuple[Sentence, ...]) -> tuple[str, ...]:
        return tuple(map(check_template, templates))

    @model_validator(mode="after")
    def _groups_are_named(self) -> FillOptions:
        if self.groups.by == "none" and any("{group}" in template for template in self.templates):
            raise ValueError("templates name {group}, but groups.by is none: say where the group is told")
        return self


class Sampling(Options, frozen=True):
    """How the diffusion model is run."""

    steps: int = Field(30, ge=1, description="denoising steps")
    scheduler: Literal["ddpm", "ddim", "dpm++", "euler", "pndm", "flow"] | None = Field(
        None, description="the sampler of the steps; default: the model's own"
    )
    guidance_scale: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="classifier-free guidance; default: the pipeline's own"
    )
    image_dropout: float = Field(
        0.5, ge=0, le=1, description="share of the conditioning image's embedding that is set to 0"
    )
    batch: int = Field(16, ge=1, description="samples drawn at a time; halved where memory runs out")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="precision of the models")


class Hardness(Options, frozen=True):
    """The class Gaussians of the hardness criterion."""

    tied: bool = Field(False, description="one covariance for all classes: for many classes of many dimensions")
    tying: float = Field(0.5, ge=0, le=1, description="share of the pooled scatter in the covariance of a class")
    shrinkage: float = Field(0.1, ge=0, le=1, description="share of a multiple of the identity in the covariance")
    dimensions: int | None = Field(None, ge=1, description="principal directions to work in; default: all")


class Copies(Options, frozen=True):
    """The nearest real picture of every sample, and which samples are copies of one."""

    encoder: str = Field("builtin:copy", description="the copy descriptor, as for granary curate")
    threshold: float | None = Field(
        None, gt=0, lt=1, description="a cosine above this is a copy; default: the encoder's own"
    )
    drop: bool = Field(False, description="leave copies out of the dataset instead of flagging them")


class ShardFiles(Options, frozen=True):
    """The Parquet files of the dataset."""

    rows: int = Field(5000, ge=1, description="planned samples in a shard at most, in whole work units")
    row_group: int = Field(100, ge=1, description="samples in a row group (the Hub viewer reads one at a time)")


class SampleRecipe(RunRecipe, frozen=True):
    """Draw samples from a diffusion model under a classifier's feedback, as many as each class of a dataset lacks."""

    name: str = Field("sampled", pattern=r"^[A-Za-z0-9._ -]+$", description="title of the dataset")
    licence: str = Field("unknown", description="licence of the samples, as the Hub names it: cc-by-4.0, mit, other")
    data: list[Source] = Field(min_length=1, description="the labelled training images (folders: a sub-folder a class)")
    holdout: list[Source] = Field([], description="evaluation images: no training image that is one of them is used")
    model: str = Field(min_length=1, description="the diffusion pipeline: a folder of diffusers or an id of the Hub")
    classifier: str = Field(
        min_length=1, description="granary:PATH of one trained with granary, or an image classifier of transformers"
    )
    out: str = Field(min_length=1, description="the run directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    unit_rows: int = Field(64, ge=1, description="samples in one work unit")
    max_unreadable: float = Field(
        0.2, ge=0, le=1, description="stop when connections or permissions fail for more of a unit; 1: never"
    )
    pairs: int = Field(24, ge=0, description="samples that are also drawn without feedback, for the report")
    decode: DecodeLimits = Field(DecodeLimits(), description="limits on what is decoded")
    plan: FillOptions = Field(FillOptions(), description="how many samples of what")
    guidance: GuidanceOptions = Field(GuidanceOptions(), description="the classifier's feedback")
    sampling: Sampling = Field(Sampling(), description="the diffusion model")
    hardness: Hardness = Field(Hardness(), description="the class Gaussians of the hardness criterion")
    copies: Copies = Field(Copies(), description="resemblance to real images")
    shards: ShardFiles = Field(ShardFiles(), description="output files")

    @model_validator(mode="before")
    @classmethod
    def _one_or_many_sources(cls, tree: Any) -> Any:
        if isinstance(tree, dict):
            for role in ("data", "holdout"):
                if role in tree:
                    tree = {**tree, role: named_sources(tree[role], role)}
        return tree

    @model_validator(mode="after")
    def _unique_names(self) -> SampleRecipe:
        names = [source.name for source in (*self.data, *self.holdout)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each source of a run its own name")
        return self
