"""Image world models at a small scale (arXiv 2403.00504): a predictor that is told how views differ learns to apply it,
a deep one better than a shallow one, and what it has learned helps with classes.

    python -m tests.benchmarks.iwm OUT [--seeds 0,1,2] [--depths 2,6] [--steps 3000] [--tuning 1200] [--train 18000]

Trains configs/train/iwm_tiny.yaml on CIFAR-10 of ../shared/data once for each seed and predictor: one that is told
nothing, as deep as the deepest, and one of each depth that is. MRR is of 200 test pictures in a bank of 64, where a
predictor that reads no action has the level of chance, 0.074, by construction. Loss is that of training on 512 test
pictures, with their own actions and with those of the next picture. Linear is ridge regression over the last layers.
Then configs/train/predictor_tuning_tiny.yaml tunes the deepest predictor, and a random one as large, on the same frozen
encoder. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset
from granary.training.method import Moment
from granary.training.methods.ijepa import prediction_loss
from granary.training.methods.iwm import IWM
from granary.training.models.training import load_training
from tests.benchmarks.cells import Cells, Numbers, bar, mean, scores, shown, trained
from tests.benchmarks.pictures import write_run

PROBES = {"knn": {"k": 20}, "linear": {"solver": "ridge"}}
PICTURES = 512  # test pictures that the loss is measured on
TUNED = ("pretrained", "random")
COLUMNS = {
    "MRR": "mrr.mrr",
    "first %": "mrr.first",
    "loss": "loss",
    "shuffled": "loss.shuffled",
    "kNN %": "knn.accuracy",
    "linear %": "linear.accuracy",
}


class Arm(NamedTuple):
    """A predictor: what it is told, and its blocks."""

    conditioning: str
    depth: int

    def __str__(self) -> str:
        """Return its name."""
        return f"{self.conditioning}-{self.depth}"


Table = Mapping[tuple[Arm, int], Numbers]  # by arm and seed
Tunings = Mapping[tuple[str, int], Numbers]  # by predictor and seed


def cell(data: str, out: Path, arm: Arm, seed: int, steps: int, pictures: int = 200) -> Numbers:
    """Train and measure a world model."""
    fields = {"options__conditioning": arm.conditioning, "options__predictor_depth": arm.depth}
    training = trained("iwm_tiny.yaml", data, out, **fields, seed=seed, steps=steps, probe__every=0)
    numbers = scores(training, data, PROBES) | losses(training, data)
    return numbers | scores(training, data, {"mrr": {"pictures": pictures}}, split="test")


@torch.no_grad()
def losses(training: str, data: str) -> Numbers:
    """Return the loss of training on test pictures, with their own actions and with those of the next picture."""
    model, sums = load_training(training), [0.0, 0.0]
    assert isinstance(model, IWM)
    dataset = open_dataset(data, ("image",), "test")
    for number, batch in enumerate(in_order(dataset, model.views()["image"], limit=PICTURES)):
        views, masks = model.pair(batch), model.masks(batch, Moment(number, 1, 0))
        for place, actions in enumerate((views.actions, views.actions.roll(1, 0))):
            predicted, truth, _ = model.compare_views(views._replace(actions=actions), *masks)
            sums[place] += len(views.actions) * float(prediction_loss(predicted, truth, model.options.loss))
    count = min(PICTURES, dataset.count)
    return {"loss": sums[0] / count, "loss.shuffled": sums[1] / count}


def tuning(data: str, out: Path, teacher: Path, predictor: str, seed: int, steps: int) -> Numbers:
    """Tune a predictor on the encoder of a world model; measure its classifier."""
    fields = {"options__teacher": teacher, "options__predictor": predictor}
    training = trained("predictor_tuning_tiny.yaml", data, out, **fields, seed=seed, steps=steps)
    return scores(training, data, {"classifier": {}}, split="test")


def report(table: Table, tunings: Tunings, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Print mean and deviation of each arm, and whether what the paper says was seen.

    Args:
        table, tunings: what was measured.
        arms: the one that is told nothing, then the others, the deepest last.
        seeds: of the trainings.
    """
    print(f"\n{'':>12}" + "".join(f"{title:>16}" for title in COLUMNS))
    for arm in arms:
        print(f"{arm!s:>12}", end="")
        for title, key in COLUMNS.items():
            print(f"{shown((table[arm, seed][key] for seed in seeds), 100 if '%' in title else 1):>16}", end="")
        print()
    for predictor in TUNED:
        accuracies = (tunings[predictor, seed]["classifier.accuracy"] for seed in seeds)
        print(f"tuned, {predictor} predictor: {shown(accuracies, 100)} %")
    bars(table, tunings, arms, seeds)


def bars(table: Table, tunings: Tunings, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Print what must be seen, in the mean over seeds; see `report`."""
    plain, *told = arms
    deepest = told[-1]
    mrr = {arm: mean(table[arm, seed]["mrr.mrr"] for seed in seeds) for arm in arms}
    bar(f"MRR of {deepest} is 0.37 or more, {mrr[deepest]:.3f}", mrr[deepest] >= 0.37)
    bar(f"MRR of {plain} is 0.15 or less, {mrr[plain]:.3f}", mrr[plain] <= 0.15)
    for shallow, deep in itertools.pairwise(told):
        bar(
            f"MRR of {deep} is above that of {shallow}, {mrr[deep]:.3f} and {mrr[shallow]:.3f}",
            mrr[deep] > mrr[shallow],
        )
    for arm in told:
        rise = mean(table[arm, seed]["loss.shuffled"] / table[arm, seed]["loss"] for seed in seeds) - 1
        bar(f"actions of other pictures raise the loss of {arm} by 5 % or more, {rise:.1%}", rise >= 0.05)
    kinds = [mean(tunings[predictor, seed]["classifier.accuracy"] for seed in seeds) for predictor in TUNED]
    gain = 100 * (kinds[0] - kinds[1])
    bar(f"a pretrained predictor is a point or more above a random one, {gain:.1f}", gain >= 1)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for name, default in (("--seeds", "0,1,2"), ("--depths", "2,6")):
        parser.add_argument(name, type=lambda text: [int(word) for word in text.split(",")], default=default)
    for name, count in (("--steps", 3000), ("--tuning", 1200), ("--train", 18_000)):
        parser.add_argument(name, type=int, default=count)
    given = parser.parse_args()
    data, cells = write_run(given.out / f"cifar-{given.train}", "cifar", given.train), Cells(given.out / "cells.json")
    depths = sorted(given.depths)
    arms = [Arm("none", depths[-1]), *(Arm("feature", depth) for depth in depths)]
    table, tunings = {}, {}
    for seed in given.seeds:
        for arm in arms:
            name = f"{arm}-seed-{seed}-steps-{given.steps}-train-{given.train}"
            work = partial(cell, data, given.out / name, arm, seed, given.steps)
            table[arm, seed] = cells.measured(name, work)
        teacher = given.out / name  # the deepest
        for predictor in TUNED:
            name = f"tuned-{predictor}-{given.tuning}-of-{teacher.name}"
            work = partial(tuning, data, given.out / name, teacher, predictor, seed, given.tuning)
            tunings[predictor, seed] = cells.measured(name, work)
    report(table, tunings, arms, given.seeds)


if __name__ == "__main__":
    main()
