"""The training directory: recipe.yaml, run.json, metrics.csv, dead-letter.csv, checkpoints/, files of the method."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, TypedDict

import torch
import yaml
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.runs.lock import LOCK
from granary.curation.store import storage
from granary.curation.store.trees import yaml_tree
from granary.training.models.checkpoint import STATE, Best, Damaged, Facts, read_checkpoint, step_folder, usable
from granary.training.recipe import TrainRecipe
from granary.training.report import PAGE
from granary.training.run.progress import Progress

# What may differ from the recipe that began the run: how fast it is and how closely it is watched, not what it does.
FREE = ("name", "out", "resume", "workers", "logs", "checkpoints", "alarm", "probe", "validation", "device")
LENGTHS = ("steps", "epochs")  # may grow
CHANGEABLE = ("batch", "accumulate", "streams", "window", "optimiser")  # may change where the recipe says so
FIXED = ("optimiser.kind",)  # but not this: the state of one optimiser means nothing to another


class RunFacts(TypedDict):
    """What run.json says of a training: how far it is, its last metrics and scores, what happened."""

    kind: Literal["train"]
    name: str
    method: str
    step: int
    steps: int
    finished: bool
    metrics: dict[str, float]
    probe: dict[str, float]
    validation: dict[str, float]
    best: Best | None
    alarms: list[str]
    dead: int
    checkpoint: str
    pictures_per_second: float
    pictures: int
    seconds: float
    processes: int
    versions: dict[str, str]


def check(recipe: TrainRecipe, steps: int) -> list[str]:
    """Return what the recipe changes of the training in `out`, in sentences.

    Args:
        recipe: to train by.
        steps: of it.

    Raises:
        UserError: `out` holds something else, a training of another recipe, or one that is beyond these steps.
    """
    changes = []
    path = storage.join(recipe.out, "recipe.yaml")
    tree = recipe.model_dump(mode="json")
    if storage.exists(path):
        try:
            earlier = yaml_tree(storage.read_bytes(path))
        except ValueError:
            earlier = None
        if not isinstance(earlier, dict) or "method" not in earlier:
            raise UserError(f"out: {recipe.out} holds something other than a training; give another --out")
        for key, old, new in differences(_in_names_of_now(earlier), tree):
            changeable = key.partition(".")[0] in CHANGEABLE and key not in FIXED
            if key not in LENGTHS and not (changeable and recipe.resume == "changed"):
                way = "give another --out" + (", or --resume changed to go on with the new value" if changeable else "")
                raise UserError(f"out: {recipe.out} holds a training with {key} {old!r}, not {new!r}; {way}")
            changes.append(f"{key} was {old} and is {new} from here on")
        _check_length(recipe, steps)
    elif set(storage.names(recipe.out)) - {LOCK}:
        raise UserError(f"out: {recipe.out} is not empty and holds no training; give another --out")
    return changes


def _check_length(recipe: TrainRecipe, steps: int) -> None:
    """Raise UserError where a training has more steps behind it than it should have in all."""
    last = next((int(folder.rsplit("-", 1)[1]) for folder in usable(recipe.out)), 0)
    if last > steps:
        key, given = ("epochs", recipe.epochs) if recipe.steps is None else ("steps", recipe.steps)
        raise UserError(
            f"{key}: {given} is not right: the training in {recipe.out} is at step {last:,} of what "
            f"would be {steps:,}; give more, or another --out"
        )


def _in_names_of_now(earlier: dict[str, object]) -> dict[str, object]:
    """Return a recipe that was written, perhaps by version 0.1, as it would be now; as it is where it is not one."""
    try:
        return TrainRecipe.model_validate(earlier).model_dump(mode="json")
    except ValidationError:
        return earlier


def write_recipe(recipe: TrainRecipe) -> None:
    """Write recipe.yaml, every default filled in."""
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.write_bytes(storage.join(recipe.out, "recipe.yaml"), text.encode())


def write_files(out: str, files: Mapping[str, bytes]) -> None:
    """Write what a method needs besides its weights, name -> content, where it is not there yet."""
    for name, data in files.items():
        if not storage.exists(storage.join(out, name)):
            storage.write_bytes(storage.join(out, name), data)


def differences(
    earlier: Mapping[str, object], tree: Mapping[str, object], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Yield (key, old value, new value) of what decides the result and is not the same.

    Args:
        earlier, tree: of two recipes, as JSON has them.
        prefix: of the keys, where both are part of a recipe.
    """
    for key in (key for key in tree if prefix or key not in FREE):
        old, new = earlier.get(key), tree[key]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def last_state(out: str, console: Console | None, write: bool) -> tuple[dict[str, Tensor], Facts, str] | None:
    """Return tensors, facts and folder of the last checkpoint that is whole; damaged ones are named and set aside."""
    for folder in list(usable(out)):
        try:
            return (*read_checkpoint(folder), folder)
        except Damaged as error:
            if console is not None:
                console.print(f"{folder} is damaged ({error}); the checkpoint before it is used", soft_wrap=True)
            if write:
                storage.remove(storage.join(folder, STATE))
    return None


class Pace(NamedTuple):
    """Pictures per second of the last session of a training that ended, and the seconds of all that did."""

    rate: float = 0.0
    seconds: float = 0.0


def run_facts(
    recipe: TrainRecipe, progress: Progress, pace: Pace, step: int, steps: int, dead: int, processes: int
) -> RunFacts:
    """Return what run.json is to say.

    Args:
        recipe: of the training.
        progress: of it.
        pace: of it.
        step: the last one taken.
        steps: in all.
        dead: samples that could not be decoded.
        processes: that train.
    """
    best = progress.best
    return {
        "kind": "train",
        "name": recipe.name,
        "method": recipe.method,
        "step": step,
        "steps": steps,
        "finished": step >= steps,
        "metrics": progress.metrics,
        "probe": progress.probe,
        "validation": progress.validation,
        "best": best,
        "alarms": list(progress.alarms.values()),
        "dead": dead,
        "checkpoint": step_folder(recipe.out, best["step"] if best else step),
        "pictures_per_second": pace.rate,
        "pictures": step * recipe.batch,
        "seconds": pace.seconds,
        "processes": processes,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def write_facts(out: str, facts: RunFacts) -> None:
    """Write run.json."""
    storage.write_bytes(storage.join(out, "run.json"), json.dumps(facts, indent=2).encode())


def earlier_pace(out: str) -> Pace:
    """Return the pace that run.json tells; 0 where it tells none."""
    path = storage.join(out, "run.json")
    try:
        facts = json.loads(storage.read_bytes(path)) if storage.exists(path) else {}
        return Pace(float(facts.get("pictures_per_second", 0)), float(facts.get("seconds", 0)))
    except (ValueError, TypeError, AttributeError):
        return Pace()


class DeadLetters:
    """What could not be decoded, once each, in dead-letter.csv: uri, stage, error, message.

    Args:
        out: the training directory.
        write: whether this process writes; each process sees its own samples, and only the first one's are in the file.
    """

    def __init__(self, out: str, write: bool) -> None:
        self.url, self.write = storage.join(out, "dead-letter.csv"), write
        self.rows: dict[str, list[str]] = {}
        if write and storage.exists(self.url):
            rows = csv.reader(io.StringIO(storage.read_bytes(self.url).decode()))
            self.rows = {row[0]: row for row in rows if row and row[0] != "uri"}

    def add(self, dead: list[tuple[str, str, str]]) -> None:
        """Note samples as (uri, error, message)."""
        new = {uri: [uri, "decode", error, message] for uri, error, message in dead if uri not in self.rows}
        self.rows |= new
        if new and self.write:
            text = io.StringIO()
            csv.writer(text).writerows([["uri", "stage", "error", "message"], *self.rows.values()])
            storage.write_bytes(self.url, text.getvalue().encode())


def summary(facts: RunFacts, out: str) -> str:
    """Return the closing lines of a session."""
    done = "trained" if facts["finished"] else "stopped and saved; the same command goes on. Trained"
    numbers = {"loss": facts["metrics"].get("loss", math.nan), **facts["probe"]}
    best = facts["best"]
    lines = [
        f"{done} {facts['step']:,} of {facts['steps']:,} steps, {facts['pictures_per_second']:,} pictures/s",
        ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()),
        *([f"lowest validation loss {best['loss']:.4f} at step {best['step']:,}: that is the model"] if best else []),
        *(f"collapse alarm at {alarm}" for alarm in facts["alarms"]),
    ]
    if facts["dead"]:
        lines.append(f"{facts['dead']:,} samples could not be decoded: {out}/dead-letter.csv")
    return "\n".join([*lines, f"model: granary:{out}, report: {out}/{PAGE}"])
