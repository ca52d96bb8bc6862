"""Expand or narrow at a small scale (arXiv 2304.05369): with two classes in a batch, a wide backbone and a narrow
projector keep what the loss would throw away.

    python -m tests.benchmarks.expand_narrow OUT [--seeds 0,1,2] [--widths 32,2048] [--projectors 16,256]
        [--train 5000] [--epochs 20] [--order few_classes] [--precision 32-true]

Trains configs/train/expand_narrow/simclr_tiny.yaml on CIFAR-10 of ../shared/data once for each width D of the last
block, width K of the linear projector, and seed. linear is ridge regression on the D features of 2,000 pictures,
penalty chosen on held-out ones; random is the same on a random projection with ReLU to 2,048; binary reads only which
features are zero; MLP has a hidden layer of 512; Fashion-MNIST is what the same model is worth on other pictures.
Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.benchmarks.cells import Cells, Numbers, bar, mean, scores, shown, trained
from tests.benchmarks.pictures import write_run

CONTROL, MLP_STEPS = 2048, 1500  # width of the random projection; steps of the MLP at most
COLUMNS = {
    "linear %": "sparsity.accuracy",
    "random %": "sparsity.accuracy_random",
    "binary %": "sparsity.accuracy_binary",
    "MLP %": "mlp.accuracy",
    "kNN %": "knn.accuracy",
    "Fashion %": "fashion.accuracy",
    "zeros %": "sparsity.zeros",
    "half zero %": "sparsity.zeros.half",
    "dead %": "sparsity.dead_units",
}
Corner = tuple[int, int]  # D and K
Table = dict[tuple[Corner, int], Numbers]  # by corner and seed


def cell(data: str, other: str, out: Path, corner: Corner, seed: int, **fields: object) -> Numbers:
    """Train with these fields of the recipe and measure."""
    fields |= {"model__last_width": corner[0], "options__projector_width": corner[1]}
    training = trained("expand_narrow/simclr_tiny.yaml", data, out, **fields, seed=seed, probe__every=0)
    numbers = scores(training, data, {"sparsity": {"random_width": CONTROL}, "knn": {"k": 20}})
    mlp = scores(training, data, {"linear": {"head": "mlp", "layers": 1, "iterations": MLP_STEPS}})
    transfer = scores(training, other, {"linear": {"solver": "ridge", "layers": 1}})
    for name, probe in (("mlp", mlp), ("fashion", transfer)):
        numbers |= {key.replace("linear", name, 1): value for key, value in probe.items()}
    return numbers


def report(table: Table, corners: Sequence[Corner], seeds: Sequence[int]) -> None:
    """Print mean and deviation of each corner, and whether what the paper says was seen."""
    columns = {title: key for title, key in COLUMNS.items() if all(key in numbers for numbers in table.values())}
    print(f"\n{'D':>6}{'K':>6}" + "".join(f"{title:>15}" for title in columns))
    for corner in corners:
        values = {key: [table[corner, seed][key] for seed in seeds] for key in columns.values()}
        print(f"{corner[0]:>6}{corner[1]:>6}" + "".join(f"{shown(column, 100):>15}" for column in values.values()))
    widths, projectors = sorted({d for d, _ in corners}), sorted({k for _, k in corners})
    if len(widths) < 2 or len(projectors) < 2:
        return
    average = {(c, key): mean(table[c, seed][key] for seed in seeds) for c in corners for key in columns.values()}
    wide, narrow = (widths[-1], projectors[0]), (widths[0], projectors[-1])
    bars(average, wide, narrow)
    for projector in projectors:
        few, many = (average[(width, projector), "sparsity.zeros"] for width in (widths[0], widths[-1]))
        bar(f"with K {projector} the share of zeros rises with D, {few:.1%} to {many:.1%}", many > few)


def bars(average: dict[tuple[Corner, str], float], wide: Corner, narrow: Corner) -> None:
    """Print the bars that compare two corners.

    Args:
        average: mean over seeds, by corner and metric.
        wide: the greatest D and the least K.
        narrow: the least D and the greatest K.
    """
    name = f"D {wide[0]}, K {wide[1]} against D {narrow[0]}, K {narrow[1]}"
    gain = average[wide, "sparsity.accuracy"] - average[narrow, "sparsity.accuracy"]
    bar(f"{name}: linear gains 5 points or more, {100 * gain:.1f}", gain >= 0.05)
    moved = average[wide, "fashion.accuracy"] - average[narrow, "fashion.accuracy"]
    bar(f"{name}: Fashion-MNIST gains too, {100 * moved:.1f} points", moved > 0)
    control = average[narrow, "sparsity.accuracy_random"] - average[narrow, "sparsity.accuracy"]
    bar(f"of that a random projection of the narrow model has less than half, {100 * control:.1f}", control < gain / 2)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for name, default in (("--seeds", "0,1,2"), ("--widths", "32,2048"), ("--projectors", "16,256")):
        parser.add_argument(name, type=lambda text: [int(word) for word in text.split(",")], default=default)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--order", choices=("few_classes", "plain"), default="few_classes")
    parser.add_argument("--precision", default="32-true")
    given = parser.parse_args()
    data = write_run(given.out / f"cifar-{given.train}", "cifar", given.train)
    other = write_run(given.out / f"fashion-{given.train}", "fashion", given.train)
    corners, cells, table = list(itertools.product(given.widths, given.projectors)), Cells(given.out / "cells.json"), {}
    for seed, corner in itertools.product(given.seeds, corners):
        name = f"D-{corner[0]}-K-{corner[1]}-{given.order}-seed-{seed}-epochs-{given.epochs:g}-train-{given.train}"
        name += f"-{given.precision}"
        fields = {"epochs": given.epochs, "order__kind": given.order, "device__precision": given.precision}
        work = partial(cell, data, other, given.out / name, corner, seed, **fields)
        table[corner, seed] = cells.measured(name, work)
    report(table, corners, given.seeds)


if __name__ == "__main__":
    main()
