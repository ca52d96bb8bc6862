"""`granary evaluate`: measure a model by one or more protocols of `granary.training.evaluation.protocols`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage
from granary.training.data.table import USUAL, Table
from granary.training.evaluation.protocols.registry import PROTOCOLS, load_protocol

if TYPE_CHECKING:  # the recipe is read, and --help printed, without torch
    from granary.training.evaluation.protocol import AnyProtocol, Measured


class EvaluateRecipe(Options, frozen=True):
    """Evaluate a model by one or more protocols on the dataset of a run."""

    KNOWN: ClassVar[Mapping[str, str]] = PROTOCOLS  # those that can be named; who stands above knows more

    protocols: list[str] = Field(min_length=1, description=f"what to measure: {', '.join(PROTOCOLS)}")
    model: str = Field(
        min_length=1,
        description="a training directory, a checkpoint, hf:ID_OR_PATH; as baselines random:RECIPE.yaml and pixels",
    )
    data: Table = Field(description="a run, its dataset, or what the protocol reads; a path or URL")
    split: str | None = Field(None, description="split to measure on; default: test for probes, else all")
    test_data: str | None = Field(None, description="another run to measure on, for protocols that also train")
    out: str | None = Field(None, description="JSON file to write: protocol -> metric -> value")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: str = Field("float32", description="float32, bfloat16 or float16")
    batch: int | None = Field(None, ge=1, description="samples encoded at once; default: the protocol's own")
    limit: int | None = Field(None, ge=1, description="only the first so many samples, for a quick look")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    options: dict[str, object] = Field(
        {}, description="further options of a protocol, for example --options.images DIR"
    )

    @field_validator("data", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("protocols")
    @classmethod
    def _known(cls, protocols: list[str]) -> list[str]:
        for name in protocols:
            if name not in cls.KNOWN:
                close = difflib.get_close_matches(name, cls.KNOWN, 1)
                hint = f"did you mean {close[0]}?" if close else f"the protocols are {', '.join(cls.KNOWN)}"
                raise ValueError(f"there is no protocol {name!r}; {hint}")
        return protocols


def evaluate(recipe: EvaluateRecipe, say: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Run the protocols of a recipe, print their scores and write them to `out`.

    Args:
        recipe: what is measured, and how.
        say: prints the lines of a protocol.

    Returns:
        protocol -> metric -> value, and "settings": the recipe, and under "used" for each protocol every option it
        went by, defaults too, and what it decided.

    Raises:
        UserError: for an option that no protocol takes, or what a protocol finds wrong.
    """
    from granary.training.evaluation.features import shared_features

    protocols = {name: load_protocol(name, recipe.KNOWN) for name in recipe.protocols}
    check(recipe, protocols)
    options = {name: protocol.read(recipe.options) for name, protocol in protocols.items()}
    results: dict[str, dict[str, Any]] = {}
    used: dict[str, dict[str, object]] = {}
    printed: set[str] = set()
    with shared_features():
        for name, protocol in protocols.items():
            measured = measured_by(recipe, protocol)
            scores = protocol.evaluate(measured, options[name])
            results[name] = scores
            used[name] = {**settings_of(measured, protocol, options[name]), **scores.settings}
            notes = [*protocol.notes, *scores.notes]
            say(table(name, scores, tuple(note for note in notes if note not in printed)))
            printed.update(notes)
    results["settings"] = {**recipe.model_dump(mode="json"), "data": _written(recipe.data), "used": used}
    if recipe.out:
        storage.write_bytes(recipe.out, (json.dumps(results, indent=2) + "\n").encode())
        say(f"written to {recipe.out}")
    return results


def _written(data: Table) -> str | dict[str, str]:
    """Return a dataset as a recipe has it: its path alone, or with the columns that were named."""
    named: dict[str, str] = data.model_dump(exclude_none=True)
    return named if len(named) > 1 else data.path


def check(recipe: EvaluateRecipe, protocols: Mapping[str, AnyProtocol]) -> None:
    """Raise UserError for a setting that a protocol would ignore, or an option that none of them has."""
    for name, protocol in protocols.items():
        for key in ("split", "test_data", "limit"):
            if getattr(recipe, key) is not None and key not in protocol.takes:
                raise UserError(f"{key}: {name} takes no such option; leave it out")
        if recipe.data.columns != USUAL and not protocol.table:
            raise UserError(f"data: {name} reads no table with columns to be named; give its path alone")
    unknown = [key for key in recipe.options if not any(protocol.has(key) for protocol in protocols.values())]
    if unknown:
        known = sorted({key for protocol in protocols.values() for key in protocol.options.model_fields})
        raise UserError(f"options.{min(unknown)}: no such option; the options are {', '.join(known) or 'none'}")


def measured_by(recipe: EvaluateRecipe, protocol: AnyProtocol) -> Measured:
    """Return what a recipe says of what is measured, to be handed to a protocol."""
    from granary.training.evaluation.protocol import Measured

    shared = {key: getattr(recipe, key) for key in ("model", "split", "test_data", "device", "dtype", "limit", "seed")}
    batch = recipe.batch or protocol.batch
    return Measured(data=recipe.data.path, batch=batch, columns=recipe.data.columns, **shared)


def settings_of(measured: Measured, protocol: AnyProtocol, options: Options) -> dict[str, object]:
    """Return everything a protocol goes by but model and data, by name."""
    shared = {key: getattr(measured, key) for key in ("device", "dtype", *protocol.takes)}
    return {**options.model_dump(), **shared}


def table(name: str, scores: Mapping[str, float | None], notes: tuple[str, ...] = ()) -> str:
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


def shown(value: float | None) -> str:
    """Write a value in a few characters."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
