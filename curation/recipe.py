"""The recipe of a curation run: every option, its default and its meaning, in one place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from granary.curation.download.options import Download
from granary.curation.images.filters import Filters
from granary.curation.images.limits import DecodeLimits
from granary.curation.options import Options, RunRecipe, named_sources
from granary.curation.sources import Source

Role = Literal["pool", "seeds", "references"]
ROLES: tuple[Role, ...] = ("pool", "seeds", "references")


class SeedSet(Source, frozen=True, extra="forbid"):
    """A curated set of images and how it retrieves."""

    mode: Literal["sample", "cluster"] = Field(
        "sample",
        description="sample: k nearest pool images per seed; cluster: draw from cells with enough seeds",
    )
    k: int | None = Field(None, ge=1, description="pool images per seed; default retrieval.k")
    cap: int | None = Field(None, ge=1, description="most pool images this set may retrieve; default retrieval.cap")
    as_is: bool = Field(False, description="put the seeds themselves into the dataset too")


class Encoders(Options, frozen=True):
    """Which descriptors decide: builtin:copy, builtin:layout, hf:ID_OR_PATH, torchscript:PATH, granary:PATH."""

    copy_: str = Field("builtin:copy", alias="copy", description="copy detection: deduplication and leaks")
    retrieval: str = Field(
        "auto",
        description="resemblance: retrieval and clusters; auto: hf:facebook/dinov2-small where it can be had, else "
        "builtin:layout",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    batch: int = Field(64, ge=1, description="pictures per call of an encoder")


class Dedup(Options, frozen=True):
    """Near-duplicate removal within the pool."""

    enabled: bool = Field(True, description="remove near duplicates (exact copies always collapse)")
    threshold: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="pictures with a cosine above this are linked; default: the copy encoder's own",
    )
    mirror: bool = Field(False, description="also link a picture with the mirror image of another")
    neighbours: int | None = Field(
        None,
        ge=1,
        description="link only the k nearest of each picture, as DINOv2 did (64); default: every pair",
    )
    split_below: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="split components so that each member is at least this close to the one kept",
    )
    index: Literal["exact", "cells"] = Field(
        "exact",
        description="cells: join inside cells of k-means alone, for pools past some 10^7; the recall is measured and "
        "reported",
    )
    cells: int | None = Field(
        None, ge=1, description="cells of k-means; default: about 4 times the square root of the pool"
    )
    probes: int | None = Field(
        None, ge=1, le=64, description="nearest cells that each picture is joined in; default: chosen by the sample"
    )
    recall: float = Field(0.995, gt=0, le=1, description="cells: share of the sample's links that probes are to find")
    measured: int = Field(
        4096, ge=1, description="cells: pictures, drawn by hash, that are joined with the whole pool to measure recall"
    )
    block: int = Field(32_768, ge=1, description="vectors in one side of a work unit of the join")
    prefix: int | None = Field(
        None, ge=1, description="principal directions that rule pairs out; speed only; default: chosen from the data"
    )

    @model_validator(mode="after")
    def _one_way_to_join(self) -> Dedup:
        if self.index == "cells" and self.neighbours is not None:
            raise ValueError("dedup.neighbours is for dedup.index exact: leave one of the two out")
        return self


class Leaks(Options, frozen=True):
    """Removal of pool images that resemble a reference set."""

    threshold: float | None = Field(
        None, gt=0, lt=1, description="cosine above which an image leaks; default: the copy encoder's own"
    )
    through_pool: bool = Field(
        True,
        description="follow pool-to-pool links too: the whole component of a reference goes (DINOv2, sec. 3)",
    )


class Retrieval(Options, frozen=True):
    """What the seed sets take from the pool."""

    k: int = Field(4, ge=1, description="pool images per seed in sample mode")
    threshold: float | None = Field(
        None, gt=-1, lt=1, description="smallest cosine of a pool image with its seed in sample mode; default: none"
    )
    clusters: int = Field(1000, ge=1, description="cells of k-means in cluster mode (DINOv2: 100,000)")
    min_seeds: int = Field(3, ge=0, description="a cell counts when it holds MORE seeds than this")
    per_cell: int = Field(10_000, ge=1, description="images drawn from a cell")
    cap: int = Field(1_000_000, ge=1, description="most images one seed set may retrieve")
    iterations: int = Field(20, ge=1, description="k-means iterations on the training sample")
    sample: int = Field(262_144, ge=1, description="pool images k-means trains on, chosen by hash")
    refine: int = Field(0, ge=0, description="further Lloyd passes over the whole pool")
    block: int = Field(65_536, ge=1, description="pool vectors in one work unit of the search")
    index: Literal["exact", "ivfpq"] = Field(
        "exact", description="ivfpq: approximate search for pools past 10^8, its recall measured and reported"
    )
    index_cells: int = Field(4096, ge=1, description="ivfpq: inverted lists, about the square root of block")
    code_bytes: int = Field(32, ge=1, description="ivfpq: bytes per code; divides the dimension")
    probes: int = Field(16, ge=1, description="ivfpq: lists searched for each seed")


class SemDeDup(Options, frozen=True):
    """Semantic deduplication inside cells (Abbas et al. 2023), in the retrieval space."""

    epsilon: float | None = Field(
        None, ge=0, lt=2, description="drop an image more similar than 1 - epsilon to an earlier one"
    )
    clusters: int = Field(1000, ge=1, description="cells of k-means")
    keep: Literal["hard", "easy", "random"] = Field("hard", description="which end of a cell comes first and stays")


class CaptionBalance(Options, frozen=True):
    """Balance of captions over metadata entries (MetaCLIP, Xu et al. 2023), the last step before the shards."""

    entries: str = Field(
        "",
        description="words: those of the pool's own captions; else a file of entries, one a line or a JSON list; "
        "nothing: captions decide nothing",
    )
    most: int = Field(20_000, ge=1, description="images that the draws of an entry keep in expectation, t of MetaCLIP")
    least: int = Field(20, ge=1, description="words: images whose captions must hold a word for it to be an entry")
    fold_case: bool = Field(False, description="match capitals and small letters alike; MetaCLIP does not")


class Balance(Options, frozen=True):
    """Balanced sampling: of pictures from hierarchical k-means (Vo et al. 2024), of captions over entries."""

    target: int | None = Field(None, ge=1, description="images to draw, flattening the density of the pool")
    levels: tuple[int, ...] = Field((1000, 100), description="cells of each level, the finest first")
    resamples: int = Field(10, ge=0, description="resampling rounds of the levels above the first")
    leaves: Literal["random", "nearest"] = Field("random", description="how a leaf gives its share")
    captions: CaptionBalance = Field(CaptionBalance(), description="balance of captions (off without entries)")

    @field_validator("levels")
    @classmethod
    def _descending(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or min(levels) < 1 or any(a <= b for a, b in itertools.pairwise(levels)):
            raise ValueError("give one or more cell counts, each smaller than the one before")
        return levels


class Shards(Options, frozen=True):
    """The Parquet files of the dataset."""

    rows: int = Field(5000, ge=1, description="samples in a shard at most")
    max_bytes: int = Field(1_000_000_000, ge=1, description="image bytes in a shard at most")
    row_group: int = Field(100, ge=1, description="samples in a row group (the Hub viewer reads one at a time)")
    order: Literal["auto", "hash", "pool"] = Field(
        "auto",
        description="hash: shuffled by hash(seed, id); pool: as read; auto: hash where sources allow random access",
    )


class CurateRecipe(RunRecipe, frozen=True):
    """Curate a pool of images: deduplicate, remove leaks, retrieve what resembles the seeds, write shards."""

    name: str = Field("curated", pattern=r"^[A-Za-z0-9._ -]+$", description="title of the dataset")
    licence: str = Field("unknown", description="licence of the images, as the Hub names it: cc-by-4.0, mit, other")
    pool: list[Source] = Field(min_length=1, description="where the uncurated images are")
    seeds: list[SeedSet] = Field([], description="curated images that retrieve; none: keep all that survives")
    references: list[Source] = Field([], description="evaluation images that must not leak")
    out: str = Field(min_length=1, description="the run directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    unit_rows: int = Field(256, ge=1, description="images in one work unit")
    max_unreadable: float = Field(
        0.2, ge=0, le=1, description="stop when connections or permissions fail for more of a unit; 1: never"
    )
    download: Download = Field(Download(), description="how addresses of lists are fetched")
    decode: DecodeLimits = Field(DecodeLimits(), description="limits on what is decoded")
    filters: Filters = Field(Filters(), description="drop by size, shape or looks; all off by default")
    encoder: Encoders = Field(Encoders(), description="descriptors")
    decisions: str = Field(
        "", description="file of what a person decided, as `granary view` writes it: CSV or JSON lines"
    )
    dedup: Dedup = Field(Dedup(), description="near-duplicate removal")
    leaks: Leaks = Field(Leaks(), description="leak removal")
    retrieval: Retrieval = Field(Retrieval(), description="retrieval")
    semdedup: SemDeDup = Field(SemDeDup(), description="semantic deduplication (off without epsilon)")
    balance: Balance = Field(Balance(), description="balanced sampling (off without target, or entries of captions)")
    shards: Shards = Field(Shards(), description="output files")

    @property
    def sources(self) -> dict[str, Sequence[Source]]:
        """The sources of each role."""
        roles: dict[str, Sequence[Source]] = {"pool": self.pool, "seeds": self.seeds, "references": self.references}
        return {role: [one.fetched_by(self.download) for one in sources] for role, sources in roles.items()}

    @model_validator(mode="before")
    @classmethod
    def _one_or_many_sources(cls, data: object) -> object:
        if isinstance(data, dict):
            for role in ROLES:
                if role in data:
                    data = {**data, role: named_sources(data[role], role)}
        return data

    @model_validator(mode="after")
    def _unique_names(self) -> CurateRecipe:
        names = [source.name for source in (*self.pool, *self.seeds, *self.references)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: give each source of a run its own name")
        return self
