"""All self-supervised methods at equal minutes of one core, on CIFAR-10: a ResNet for pairs of views, a ViT for masks.

    python -m tests.benchmarks.cookbook OUT [--methods simclr,byol,...] [--seeds 0,1,2] [--minutes 5] [--train 18000]
        [--precision 32-true]

Trains configs/train/NAME_tiny.yaml on one thread for as many steps as fit into so many minutes of processor time, the
pace being measured first and kept. kNN has k 20; linear is ridge regression on the last layer, its penalty chosen on
held-out training pictures; RankMe is of the 2,000 test pictures, as a share of the width; random are the backbone's
initial weights under the same heads. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from granary.pipelines.engine.recipe import load_recipe
from granary.training.methods import load_method
from granary.training.recipe import TrainRecipe
from granary.training.two_views import TwoViews
from tests.benchmarks.cells import Cells, Numbers, bar, mean, scores, shown, trained
from tests.benchmarks.pictures import write_run
from tests.places import CONFIGS

RECIPES = {
    "simclr": "simclr_resnet_tiny.yaml",
    "moco": "moco_tiny.yaml",
    "moco_v3": "moco_v3_tiny.yaml",
    "nnclr": "nnclr_tiny.yaml",
    "byol": "byol_tiny.yaml",
    "simsiam": "simsiam_tiny.yaml",
    "barlow": "barlow_tiny.yaml",
    "vicreg": "vicreg_tiny.yaml",
    "wmse": "wmse_tiny.yaml",
    "swav": "swav_tiny.yaml",
    "simclr_vit": "simclr_vit_tiny.yaml",
    "msn": "msn_tiny.yaml",
    "dino": "dino_tiny.yaml",
    "ibot": "ibot_tiny.yaml",
    "dinov2": "dinov2_tiny.yaml",
    "ijepa": "ijepa_tiny.yaml",
    "mae": "mae_tiny.yaml",
    "simmim": "simmim_tiny.yaml",
    "beit": "beit_tiny.yaml",
}
PROTOCOLS: Mapping[str, Mapping[str, object]] = {
    "knn": {"k": 20},
    "linear": {"solver": "ridge", "layers": 1},
    "features": {"views": 0},
}
PACE = (5, 25)  # steps between which the pace is measured
FULL = "32-true"
FAR = ("simclr", "byol", "barlow")  # must be 12 points of kNN above random weights, the others 5
Table = dict[tuple[str, int], Numbers]  # by method and seed


def pace(config: str, data: str, out: Path, precision: str = FULL) -> Numbers:
    """Return the pictures that a recipe trains on in a second of one core."""
    seconds = []
    for steps in PACE:
        begin = time.process_time()
        short_training(config, data, out / f"steps-{steps}", 0, steps, precision)
        seconds.append(time.process_time() - begin)
    return {"pictures": (PACE[1] - PACE[0]) * batch_of(config) / (seconds[1] - seconds[0])}


def cell(config: str, data: str, out: Path, seed: int, steps: int, precision: str) -> Numbers:
    """Train for so many steps and measure."""
    numbers = scores(short_training(config, data, out, seed, steps, precision), data, PROTOCOLS)
    return numbers | {"share": numbers["features.rank_me"] / _recipe(config).config().width}


def random_cell(config: str, data: str) -> tuple[str, Callable[[], Numbers]]:
    """Return name and measurement of a recipe's initial weights, which methods of two views with one backbone share."""
    recipe = _recipe(config)
    maker = "two views" if issubclass(load_method(recipe.method), TwoViews) else recipe.method
    described = [asdict(recipe.config()), maker]
    name = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
    return f"random-{name}", partial(scores, f"random:{CONFIGS / 'train' / config}", data, PROTOCOLS)


def length(method: str, data: str, out: Path, cells: Cells, minutes: float, precision: str = FULL) -> tuple[float, int]:
    """Return the pictures that a method trains on in a second of one core, and the steps of so many minutes of it."""
    config, name = RECIPES[method], f"pace-{method}{_ending(precision)}"
    pictures = cells.measured(name, partial(pace, config, data, out / name, precision))["pictures"]
    return pictures, round(60 * minutes * pictures / batch_of(config))


def cell_name(method: str, minutes: float, seed: int, train: int, precision: str = FULL) -> str:
    """Return the name of a cell, which is that of its training's folder too."""
    return f"{method}-minutes-{minutes:g}-seed-{seed}-train-{train}{_ending(precision)}"


def _ending(precision: str) -> str:
    return "" if precision == FULL else f"-{precision}"


def batch_of(config: str) -> int:
    """Return the pictures of a step of a recipe."""
    return _recipe(config).batch


def _recipe(config: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, str(CONFIGS / "train" / config), ["--data", "RUN", "--out", "TRAIN"])


def short_training(config: str, data: str, out: Path, seed: int, steps: int, precision: str = FULL) -> str:
    """Train on one thread in one process, warmed up for a twentieth of the steps."""
    fields: dict[str, object] = {
        "optimiser__warmup": max(1, steps // 20),
        "device__threads": 1,
        "device__accelerator": "cpu",
        "device__precision": precision,
        "workers": 0,
    }
    fields |= {"probe__every": 0, "checkpoints__every": 10_000, "split": "train"}
    return trained(config, data, out, seed=seed, steps=steps, **fields)


def report(table: Table, paces: Mapping[str, float], seeds: Sequence[int]) -> None:
    """Print a row of each method, and which bars hold."""
    titles = ("kNN %", "over random", "linear %", "over random", "RankMe %")
    print(f"\n{'':>12}" + "".join(f"{title:>15}" for title in titles) + f"{'pictures/s':>12}")
    for method in paces:
        rows = [table[method, seed] for seed in seeds]
        columns = [[row[f"{of}.accuracy"] for row in rows] for of in ("knn", "random.knn", "linear", "random.linear")]
        for score in (0, 2):
            columns[score + 1] = [a - b for a, b in zip(columns[score], columns[score + 1], strict=True)]
        columns.append([row["share"] for row in rows])
        print(f"{method:>12}" + "".join(f"{shown(values, 100):>15}" for values in columns) + f"{paces[method]:>12.0f}")
    for method in paces:
        rows, least = [table[method, seed] for seed in seeds], 12 if method in FAR else 5
        gain = 100 * mean(row["knn.accuracy"] - row["random.knn.accuracy"] for row in rows)
        bar(f"{method} is {least} points of kNN above its random weights, {gain:.1f}", gain >= least)
        rank = mean(row["share"] for row in rows)
        bar(f"RankMe of {method} is above a tenth of the width, {rank:.1%}", rank > 0.1)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(RECIPES))
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default="0,1,2")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--train", type=int, default=18_000)
    parser.add_argument("--precision", default=FULL)
    given = parser.parse_args()
    data, cells = write_run(given.out / f"cifar-{given.train}", "cifar", given.train), Cells(given.out / "cells.json")
    table, paces = {}, {}
    for seed, method in itertools.product(given.seeds, given.methods):
        config = RECIPES[method]
        paces[method], steps = length(method, data, given.out, cells, given.minutes, given.precision)
        name = cell_name(method, given.minutes, seed, given.train, given.precision)
        work = partial(cell, config, data, given.out / name, seed, steps, given.precision)
        table[method, seed] = cells.measured(name, work)
        untrained = cells.measured(*random_cell(config, data))
        table[method, seed] |= {f"random.{score}": value for score, value in untrained.items()}
    report(table, paces, given.seeds)


if __name__ == "__main__":
    main()
