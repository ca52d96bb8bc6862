"""What a run directory says of the run: recipe.yaml, written at its beginning, and run.json, at its end."""

from __future__ import annotations

import json
from typing import NotRequired, TypedDict, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from granary.curation.errors import UserError
from granary.curation.store import storage

M = TypeVar("M", bound=BaseModel)

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


class SourceCount(TypedDict):
    """Files of one source, and those that could not be read."""

    role: str
    name: str
    kind: str
    files: int
    dead: int


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
        return model.model_validate(yaml.safe_load(storage.read_bytes(path)))
    except FileNotFoundError:
        raise UserError(
            f"run: {url} is not a run directory (it has no recipe.yaml); give the --out of a granary run"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(
            f"run: {path} is not the recipe of a run of this kind and version of granary; "
            "give another --out, or delete that folder"
        ) from error


def read_facts(url: str) -> Facts:
    """Return run.json of a finished run.

    Args:
        url: of the run directory.

    Raises:
        UserError: there is none.
    """
    try:
        return cast(Facts, json.loads(storage.read_bytes(storage.join(url, "run.json"))))
    except FileNotFoundError:
        if storage.exists(storage.join(url, "recipe.yaml")):
            raise UserError(f"run: {url} is not finished; run its granary command again first") from None
        raise UserError(
            f"run: {url} is not a run directory (it has no run.json); give the --out of a granary run"
        ) from None
