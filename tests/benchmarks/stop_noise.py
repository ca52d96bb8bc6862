"""StoP's noise at a small scale (arXiv 2308.00566): as it grows, A becomes smaller and the mask token larger.

    python -m tests.benchmarks.stop_noise OUT [--seeds 0,1,2] [--stds 0,0.25,0.5] [--steps 3000] [--train 18000]
        [--precision 32-true]

Trains configs/train/stop_tiny.yaml on CIFAR-10 of ../shared/data once for each standard deviation and seed, 0 being
I-JEPA. Sizes of A and of the mask token are Frobenius norms at the end of training; linear is ridge regression over the
last layers, kNN has k 20, both on 2,000 pictures. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from granary.training.models.checkpoint import usable
from tests.benchmarks.cells import Cells, Numbers, bar, mean, scores, shown, trained
from tests.benchmarks.pictures import write_run

PROTOCOLS = {"knn": {"k": 20}, "linear": {"solver": "ridge"}}
COLUMNS = {"|A|": "a_norm", "|token|": "token_norm", "kNN %": "knn.accuracy", "linear %": "linear.accuracy"}


def cell(data: str, out: Path, std: float, **fields: object) -> Numbers:
    """Train with these fields of the recipe and measure."""
    training = trained("stop_tiny.yaml", data, out, options__noise_std=std, probe__every=0, **fields)
    weights = load_file(Path(next(iter(usable(training))), "training.safetensors"))
    norms = {
        "a_norm": float(weights["method/predictor.embed.weight"].norm()),
        "token_norm": float(weights["method/predictor.mask_token"].norm()),
    }
    return norms | scores(training, data, PROTOCOLS)


def report(table: dict[tuple[float, int], Numbers], stds: list[float], seeds: list[int]) -> None:
    """Print mean and deviation for each standard deviation, and whether the trend is there for every seed."""
    print(f"\n{'noise_std':>10}" + "".join(f"{title:>16}" for title in COLUMNS))
    for std in stds:
        print(f"{std:>10}", end="")
        for title, key in COLUMNS.items():
            values = (table[std, seed][key] for seed in seeds)
            print(f"{shown(values, 100 if '%' in title else 1):>16}", end="")
        print()
    pairs = [(table[low, seed], table[high, seed]) for low, high in itertools.pairwise(stds) for seed in seeds]
    bar("the norm of A falls with the noise in every seed", all(a["a_norm"] > b["a_norm"] for a, b in pairs))
    bar("that of the token grows in every seed", all(a["token_norm"] < b["token_norm"] for a, b in pairs))
    if 0.0 in stds and 0.25 in stds:
        gains = [table[0.25, seed]["linear.accuracy"] - table[0.0, seed]["linear.accuracy"] for seed in seeds]
        print(f"linear with noise_std 0.25 less I-JEPA: {shown(gains, 100)} points")
        bar("linear is at most half a point below that of I-JEPA, in the mean", mean(gains) >= -0.005)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--stds", default="0,0.25,0.5")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--train", type=int, default=18_000)
    parser.add_argument("--precision", default="32-true")
    given = parser.parse_args()
    seeds, stds = [int(word) for word in given.seeds.split(",")], sorted(float(word) for word in given.stds.split(","))
    data, cells = write_run(given.out / f"cifar-{given.train}", "cifar", given.train), Cells(given.out / "cells.json")
    table = {}
    for seed, std in itertools.product(seeds, stds):
        name = f"std-{std}-seed-{seed}-steps-{given.steps}-train-{given.train}-{given.precision}"
        fields = {"seed": seed, "steps": given.steps, "device__precision": given.precision}
        table[std, seed] = cells.measured(name, partial(cell, data, given.out / name, std, **fields))
    report(table, stds, seeds)


if __name__ == "__main__":
    main()
