"""What a run directory says of the run: recipe.yaml, written at its beginning, and run.json, at its end."""

from __future__ import annotations

from collections.abc import Set
from typing import NotRequired, TypedDict, TypeVar, cast

from pydantic import BaseModel

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.trees import mapping, yaml_tree

M = TypeVar("M", bound=BaseModel)

NEEDED = {"kind", "name", "samples", "shards", "bytes"}  # without these it is no run.json

# What became of the files that came into a stage; the first key is a keyword of Python.
FlowRow = TypedDict("FlowRow", {"stage": str, "in": int, "kept": int, "dropped": int, "dead": int})


class Timing(TypedDict):
    """What the work of a stage cost: `units` of `of` were not finished before, and had `rows` of `noun`."""

    stage: str
    units: int
    rows: int
    noun: str
    seconds: float
    workers: int | None
    of: NotRequired[int]
    peak_mb: NotRequired[float | None]


class SplitCounts(TypedDict):
    """Samples, files and bytes of one split."""

    samples: int
    shards: int
    bytes: int


class Counts(SplitCounts):
    """Samples, files and bytes of one config of a dataset, and of each of its splits, train first."""

    splits: NotRequired[dict[str, SplitCounts]]


class About(TypedDict):
    """What a card says of one kind of run.

    Attributes:
        made: what the dataset is and how it was made.
        meanings: of columns, by name.
        tags: for the Hub.
        task_categories: for the Hub.
        method: the paper.
        limits: known ones, in sentences.
        local: keys of the recipe that belong to one machine.
    """

    made: str
    meanings: dict[str, str]
    tags: list[str]
    task_categories: list[str]
    method: str
    limits: list[str]
    local: list[str]


class Sitting(TypedDict):
    """One call of the command that worked on the run."""

    started: str
    seconds: float
    stages: list[Timing]


class LeftOutRow(TypedDict):
    """Files, members or columns of a source that were passed over, and why."""

    what: str
    why: str
    count: int


class SourceCount(TypedDict):
    """What one source gave.

    Attributes:
        files: candidates, of which `dead` could not be read and `images` could.
        captions: images with captions.
        labels: images with a label.
        metadata: keys of the metadata that is kept, the most frequent first.
        left_out: what was passed over.
    """

    role: str
    name: str
    kind: str
    files: int
    dead: int
    images: NotRequired[int]
    captions: NotRequired[int]
    labels: NotRequired[int]
    metadata: NotRequired[list[str]]
    left_out: NotRequired[list[LeftOutRow]]


class EntryCount(TypedDict):
    """An entry that captions were balanced over: how many images match it, and how many of them stay.

    probability: of the draw that an image has for the entry.
    """

    entry: str
    before: int
    after: int
    probability: float


class CaptionCounts(TypedDict):
    """What balancing captions came to.

    Attributes:
        most: images that an entry keeps in expectation.
        entries: how many there are.
        head: how many of them more images match than that.
        tail: how many fewer match, but one at least.
        rows: the most frequent of the head, then of the tail.
    """

    most: int
    entries: int
    head: int
    tail: int
    rows: list[EntryCount]


class CellCounts(TypedDict):
    """How near duplicates were joined inside cells, and what share of the links of a sample that found.

    Attributes:
        cells: of k-means.
        homes: cells that each image was a member of.
        probes: cells that it was joined in.
        rows: images of the sample that have a link and did not choose the probes.
        links: of theirs with the whole pool.
        link_recall: share of the links that were seen; None without any.
        link_interval: 95 % interval (Wilson), the images as trials, since links of one image hang together.
        component_recall: share of the links whose ends came into one component.
        component_interval: its interval.
    """

    cells: int
    homes: int
    probes: int
    rows: int
    links: int
    link_recall: float | None
    link_interval: tuple[float, float] | None
    component_recall: float | None
    component_interval: tuple[float, float] | None


class Audit(TypedDict):
    """The highest similarity left between a reference set and what survived."""

    reference: str
    highest_similarity: float


class SetCount(TypedDict):
    """What a seed set retrieved: how often an image, and how many different ones.

    similarities: lowest, median and highest cosine of an image with its seed, in sample mode.
    """

    set: str
    mode: str
    seeds: int
    retrievals: int
    distinct: int
    recall: NotRequired[float]
    similarities: NotRequired[list[float]]


class Facts(TypedDict):
    """run.json, as far as every kind of run has it and curate adds to it."""

    kind: str
    name: str
    created: str
    updated: str
    seed: int
    versions: dict[str, str]
    recipe_digest: str
    samples: int
    shards: int
    bytes: int
    splits: NotRequired[dict[str, SplitCounts]]
    configs: dict[str, Counts]
    card: About
    notes: list[str]
    flow: list[FlowRow]
    stages: list[Timing]
    sessions: list[Sitting]
    noun: NotRequired[str]
    input_fingerprint: NotRequired[str]
    order: NotRequired[str]
    sources: NotRequired[list[SourceCount]]
    thresholds: NotRequired[dict[str, float]]
    removed_at: NotRequired[list[tuple[float, int]]]
    caption_balance: NotRequired[CaptionCounts | None]
    cells: NotRequired[CellCounts | None]
    leak_audit: NotRequired[list[Audit]]
    retrieval: NotRequired[list[SetCount]]


def read_recipe(url: str, model: type[M]) -> M:
    """Return the recipe of a run directory.

    Args:
        url: of the directory.
        model: the recipe's class.

    Raises:
        UserError: there is none of this kind.
    """
    path = storage.join(url, "recipe.yaml")
    try:
        return model.model_validate(yaml_tree(storage.read_bytes(path)))
    except FileNotFoundError:
        raise UserError(
            f"run: {url} is not a run directory (it has no recipe.yaml); give the --out of a granary run"
        ) from None
    except ValueError as error:  # a ValidationError is one
        raise UserError(
            f"run: {path} is not the recipe of a run of this kind and version of granary; "
            "give another --out, or delete that folder"
        ) from error


def recipe_tree(url: str) -> dict[str, object]:
    """Return the recipe of a run directory as it is written, unchecked; empty where there is none."""
    path = storage.join(url, "recipe.yaml")
    tree = yaml_tree(storage.read_bytes(path)) if storage.exists(path) else {}
    return tree if isinstance(tree, dict) else {}


def read_facts(url: str) -> Facts:
    """Return run.json of a finished run.

    Args:
        url: of the run directory.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = storage.join(url, "run.json")
    try:
        return cast(Facts, lacking_nothing(mapping(path, storage.read_bytes(path)), NEEDED))
    except ValueError as error:
        raise UserError(
            f"run: {path} is damaged ({error}); `granary check RUN --repair` removes it, and the run's command writes "
            "it again"
        ) from error
    except FileNotFoundError:
        if storage.exists(storage.join(url, "recipe.yaml")):
            raise UserError(f"run: {url} is not finished; run its granary command again first") from None
        raise UserError(
            f"run: {url} is not a run directory (it has no run.json); give the --out of a granary run"
        ) from None


def lacking_nothing(tree: dict[str, object], needed: Set[str]) -> dict[str, object]:
    """Return a mapping that has the keys needed; raises ValueError when one is missing."""
    missing = sorted(needed - tree.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return tree
