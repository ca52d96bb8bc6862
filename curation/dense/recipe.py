"""The recipe of a pack run: every option, its default and its meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from granary.curation.images.limits import DecodeLimits
from granary.curation.options import Options, RunRecipe

Format = Literal["dci", "coco", "narratives", "jsonl", "vqa", "gqa", "pope", "llava", "winoground"]
MaskForm = Literal["rle", "png"]


class Budget(Options, frozen=True):
    """How long a text may be."""

    tokenizer: str = Field(
        "", description="tokenizer.json, or folder of a transformers tokenizer; without one words are counted"
    )
    tokens: int | None = Field(
        None, ge=1, description="most tokens of a text, special ones included; default 77, in words 55"
    )


class Crops(Options, frozen=True):
    """The pictures of the masks."""

    store: Literal["rows", "boxes"] = Field(
        "rows", description="rows: cut now, a new picture each; boxes: to be cut out of the whole image at load time"
    )
    grow: float = Field(0.15, ge=0, le=1, description="share of its width and height a box grows by at each side")
    min_side: int = Field(224, ge=1, description="masks narrower or lower than this give no entry")
    darken: bool = Field(False, description="darken what lies outside of the mask (pixel // 3 + 84)")
    format: Literal["jpeg", "png"] = Field("jpeg", description="of the new pictures; png is exact and larger")
    quality: int = Field(95, ge=1, le=100, description="of JPEG, with colours at half the resolution")


class Writer(Options, frozen=True):
    """A causal language model of `transformers` that writes summaries and negatives (engine: model)."""

    model: str = Field("", description="folder of the model and its tokenizer")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the weights")
    batch: int = Field(8, ge=1, description="texts written at a time; part of what decides them")
    temperature: float = Field(0.72, gt=0, description="of the sampling")
    attempts: int = Field(4, ge=1, description="times a text is asked for, and asked to be made shorter")
    max_input: int = Field(2000, ge=16, description="tokens of a description that the model is shown")


class Summaries(Options, frozen=True):
    """The short texts of an entry, the first one first."""

    engines: tuple[Literal["given", "model", "windows"], ...] = Field(
        ("given", "windows"),
        description="tried in this order for each entry: given in the data; written by the model; the first windows of "
        "the description",
    )
    alternates: bool = Field(True, description="ask the model for further summaries (9 of an image, 5 of a mask)")
    windows: int = Field(5, ge=1, description="most windows of a description taken as captions")


class Negatives(Options, frozen=True):
    """Texts that do not describe an entry."""

    engines: tuple[Literal["given", "model", "rules"], ...] = Field(
        ("given", "rules"),
        description="tried in this order for each entry: given in the data; written by the model; made by rule",
    )
    per_image: int = Field(3, ge=0, description="of each kind for a whole image")
    per_mask: int = Field(1, ge=0, description="of each kind for a mask")


class Shards(Options, frozen=True):
    """The Parquet files of the dataset."""

    masks: MaskForm = Field("rle", description="masks as COCO run lengths, or as 1-bit PNG")
    row_group: int = Field(100, ge=1, le=1000, description="most samples in a row group")


class PackRecipe(RunRecipe, frozen=True):
    """Pack images and dense captions: mask trees, texts in windows of a token budget, crops, summaries, negatives."""

    name: str = Field("packed", pattern=r"^[A-Za-z0-9._ -]+$", description="title of the dataset")
    licence: str = Field(
        "unknown", description="licence of images and annotations, as the Hub names it: cc-by-4.0, mit, other"
    )
    format: Format = Field(
        "dci",
        description="dci (and sDCI), coco, narratives (ImageInWords, Localized Narratives), jsonl; vqa (VQAv2), gqa, "
        "pope, llava (instructions), winoground",
    )
    annotations: str = Field(min_length=1, description="folder or file of the annotations, a path or URL")
    images: str = Field(
        "", description="folder the annotations' image names are relative to; Winoground's Parquet needs none"
    )
    captions: str = Field("", description="coco: caption file that goes with the instance file")
    answers: str = Field("", description="vqa: annotation file that goes with the question file")
    splits: str = Field("", description="dci: splits.json; by default the one beside the folder, where there is one")
    out: str = Field(min_length=1, description="the run directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    unit_rows: int = Field(128, ge=1, description="annotations in one work unit, and samples in a shard at most")
    max_unreadable: float = Field(
        0.2, ge=0, le=1, description="stop when connections or permissions fail for more of a unit; 1: never"
    )
    decode: DecodeLimits = Field(DecodeLimits(), description="limits on what is decoded")
    budget: Budget = Field(Budget(), description="length of texts")
    crops: Crops = Field(Crops(), description="pictures of the masks")
    summaries: Summaries = Field(Summaries(), description="short texts")
    negatives: Negatives = Field(Negatives(), description="texts that do not describe")
    writer: Writer = Field(Writer(), description="language model")
    shards: Shards = Field(Shards(), description="output files")

    @property
    def engines(self) -> frozenset[str]:
        """The engines that write summaries or negatives."""
        return frozenset((*self.summaries.engines, *self.negatives.engines))

    @field_validator("summaries", "negatives")
    @classmethod
    def _each_engine_once(cls, texts: Summaries | Negatives) -> Summaries | Negatives:
        if len(set(texts.engines)) < len(texts.engines):
            raise ValueError("an engine is named twice; name each once")
        return texts
