"""`granary evaluate`: measure a model by protocols, each a module of `granary.training.evaluation`.

A protocol is a function `evaluate(model, data, *, option=default, ...) -> dict[str, float | None]`: model and data as
given on the command line, metric -> value back; `METRIC.chance` is the level of a random scorer, other names with a
dot and counts say what a value was measured on. The options it takes are its keyword arguments; those that
`EvaluateRecipe` has as fields are passed to every protocol that names them, further ones come under `options`.
A module's `NOTES` are printed below its scores, and so are those of a protocol that returns
`granary.training.evaluation.scores.Scores`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import pydantic
from pydantic import Field, field_validator

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage

PROTOCOLS = {
    "sdci": "granary.training.evaluation.protocols.sdci:evaluate",
    "binary-choice": "granary.training.evaluation.protocols.binary_choice:evaluate",
    "zero-shot": "granary.training.evaluation.protocols.zeroshot:evaluate",
    "retrieval": "granary.training.evaluation.protocols.retrieval:evaluate",
    "knn": "granary.training.evaluation.protocols.knn:evaluate",
    "linear": "granary.training.evaluation.protocols.linear:evaluate",
    "few-shot": "granary.training.evaluation.protocols.fewshot:evaluate",
    "features": "granary.training.evaluation.protocols.statistics:evaluate",
    "factors": "granary.training.evaluation.protocols.by_factor:evaluate",
    "video-segmentation": "granary.training.evaluation.protocols.segmentation:evaluate",
}
SHARED = ("split", "test_data", "device", "dtype", "batch", "limit", "seed")  # fields given to whom they concern


class EvaluateRecipe(Options, frozen=True):
    """Evaluate a model by one or more protocols on the dataset of a run."""

    protocols: list[str] = Field(min_length=1, description=f"what to measure: {', '.join(PROTOCOLS)}")
    model: str = Field(
        min_length=1,
        description="a training directory, a checkpoint, hf:ID_OR_PATH; as baselines random:RECIPE.yaml and pixels",
    )
    data: str = Field(min_length=1, description="a run, its dataset, or what the protocol reads; a path or URL")
    split: str | None = Field(None, description="split to measure on; default: test for probes, else all")
    test_data: str | None = Field(None, description="another run to measure on, for protocols that also train")
    out: str | None = Field(None, description="JSON file to write: protocol -> metric -> value")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: str = Field("float32", description="float32, bfloat16 or float16")
    batch: int | None = Field(None, ge=1, description="samples encoded at once; default: the protocol's own")
    limit: int | None = Field(None, ge=1, description="only the first so many samples, for a quick look")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    options: dict[str, Any] = Field({}, description="further options of a protocol, for example --options.images DIR")

    @field_validator("protocols", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("protocols")
    @classmethod
    def _known(cls, protocols: list[str]) -> list[str]:
        for name in protocols:
            if name not in PROTOCOLS:
                close = difflib.get_close_matches(name, PROTOCOLS, 1)
                hint = f"did you mean {close[0]}?" if close else f"the protocols are {', '.join(PROTOCOLS)}"
                raise ValueError(f"there is no protocol {name!r}; {hint}")
        return protocols


def evaluate(recipe: EvaluateRecipe, say: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Run the protocols of a recipe, print their scores and write them to `out`.

    Returns:
        protocol -> metric -> value, and "settings": the recipe, and under "used" for each protocol every option it
        went by, defaults too, and what it decided.

    Raises:
        UserError: for an option that no protocol takes, or what a protocol finds wrong.
    """
    calls = {name: (resolve(name), arguments_of(name, recipe)) for name in recipe.protocols}
    unknown = set(recipe.options) - {key for name in recipe.protocols for key in taken(resolve(name))}
    if unknown:
        known = sorted({key for name in recipe.protocols for key in taken(resolve(name))} - set(SHARED))
        raise UserError(f"options.{min(unknown)}: no such option; the options are {', '.join(known) or 'none'}")
    from granary.training.evaluation.features import shared_features

    results: dict[str, dict[str, Any]] = {}
    used: dict[str, dict[str, Any]] = {}
    told: set[str] = set()
    with shared_features():
        for name, (function, arguments) in calls.items():
            results[name], options = call(function, recipe, arguments)
            scores = results[name]
            used[name] = {**options, **getattr(scores, "settings", {})}
            notes = [*notes_of(name), *getattr(scores, "notes", ())]
            say(table(name, scores, tuple(note for note in notes if note not in told)))
            told.update(notes)
    results["settings"] = {**recipe.model_dump(mode="json"), "used": used}
    if recipe.out:
        storage.write_bytes(recipe.out, (json.dumps(results, indent=2) + "\n").encode())
        say(f"written to {recipe.out}")
    return results


def resolve(name: str) -> Callable[..., dict[str, Any]]:
    """Import the function of a protocol; only those asked for are imported."""
    module, _, function = PROTOCOLS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def notes_of(name: str) -> tuple[str, ...]:
    """Return what a reader of the scores must know."""
    return getattr(importlib.import_module(PROTOCOLS[name].partition(":")[0]), "NOTES", ())


def taken(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a protocol: its keyword-only arguments and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def arguments_of(name: str, recipe: EvaluateRecipe) -> dict[str, Any]:
    """Return the options to call a protocol with; raises UserError for a setting it would ignore."""
    options = taken(resolve(name))
    given = {key: getattr(recipe, key) for key in SHARED if getattr(recipe, key) is not None}
    for key in ("split", "test_data", "limit"):
        if key in given and key not in options:
            raise UserError(f"{key}: {name} takes no such option; leave it out")
    return {key: value for key, value in {**given, **recipe.options}.items() if key in options}


def call(
    function: Callable[..., Any], recipe: EvaluateRecipe, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Call a protocol; an option's text becomes what its annotation asks for, or a UserError.

    Returns:
        The scores, and the options as they were understood, defaults too.
    """
    options: dict[str, Any] = {}

    @functools.wraps(function)
    def noted(model: str, data: str, **understood: Any) -> dict[str, Any]:
        options.update(understood)
        return function(model, data, **understood)

    try:
        scores = pydantic.validate_call(noted)(recipe.model, recipe.data, **arguments)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(word) for word in problem["loc"])
        raise UserError(f"options.{key}: {problem['input']!r} is not right: {problem['msg'].lower()}") from None
    return scores, options


def table(name: str, scores: Mapping[str, Any], notes: tuple[str, ...] = ()) -> str:
    """Return scores as lines: the value, the chance level beside it, what it was measured on."""
    lines = [name]
    for metric, value in scores.items():
        if "." in metric and metric.rpartition(".")[0] in scores:
            continue
        details = [
            f"{key.rpartition('.')[2].replace('_', ' ')} {shown(scores[key])}"
            for key in scores
            if key.rpartition(".")[0] == metric
        ]
        lines.append(f"  {metric:<24} {shown(value):>10}   {', '.join(details)}".rstrip())
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


def shown(value: Any) -> str:
    """Write a value in a few characters."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
