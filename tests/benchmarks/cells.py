"""Experiments of many trainings: what each cell measured is kept at once, so that the same command goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from granary.pipelines.engine.recipe import load_recipe
from granary.training.evaluation.features import shared_features
from granary.training.evaluation.protocol import Measured
from granary.training.evaluation.protocols.registry import load_protocol
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
from tests.places import CONFIGS

Numbers = dict[str, float]


class Cells:
    """Numbers by the name of a cell, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Numbers] = json.loads(path.read_text()) if path.exists() else {}

    def measured(self, name: str, measure: Callable[[], Numbers]) -> Numbers:
        """Return the numbers of a cell, from the file or, where they are not there, measured and written."""
        if name not in self.values:
            self.values[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.with_suffix(".part").write_text(json.dumps(self.values, indent=1))
            self.path.with_suffix(".part").replace(self.path)
            headlines = {
                key: value for key, value in self.values[name].items() if key.count(".") < 2 and "|" not in key
            }
            print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in headlines.items()), flush=True)
        return self.values[name]


def recipe_of(config: str, data: str, out: Path | str, **changes: object) -> TrainRecipe:
    """Return a shipped recipe.

    Args:
        config: its name below configs/train.
        data: the run.
        out: the training directory.
        changes: fields, dots written as two underscores.
    """
    words = [word for key, value in changes.items() for word in (f"--{key.replace('__', '.')}", str(value))]
    return load_recipe(TrainRecipe, str(CONFIGS / "train" / config), ["--data", data, "--out", str(out), *words])


def trained(config: str, data: str, out: Path, **changes: object) -> str:
    """Train by a shipped recipe, going on where there is a checkpoint; returns the training directory."""
    train(recipe_of(config, data, out, **changes))
    return str(out)


def scores(
    model: str,
    data: str,
    protocols: Mapping[str, Mapping[str, object]],
    device: str = "auto",
    split: str | None = None,
) -> Numbers:
    """Return `PROTOCOL.METRIC` of several protocols with their options; features are computed once."""
    numbers: Numbers = {}
    with shared_features():
        for name, options in protocols.items():
            protocol = load_protocol(name)
            values = protocol.evaluate(Measured(model, data, split, device=device, batch=256), protocol.read(options))
            numbers |= {f"{name}.{key}": value for key, value in values.items() if value is not None}
    return numbers


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def shown(values: Iterable[float], scale: float = 1.0) -> str:
    """Return mean and standard deviation of a sample, `1.2 ± 0.3`; without the latter for one number."""
    numbers = [scale * value for value in values]
    middle = f"{mean(numbers):.2f}"
    return middle if len(numbers) == 1 else f"{middle} ± {spread(numbers):.2f}"


def spread(values: Iterable[float]) -> float:
    """Return the standard deviation of a sample; 0 of one number."""
    numbers = list(values)
    middle = mean(numbers)
    return math.sqrt(sum((x - middle) ** 2 for x in numbers) / max(1, len(numbers) - 1))


def bar(claim: str, holds: bool) -> None:
    """Print whether what a paper says was seen."""
    print(f"BAR {'holds' if holds else 'DOES NOT HOLD'}: {claim}")
