"""Objectives Matter (arXiv 2304.13089) at a small scale: what joint embedding and reconstruction do to a ViT.

    python -m tests.benchmarks.objectives OUT [--seeds 0,1,2] [--minutes 3] [--joint simclr_vit,msn]
        [--reconstruction mae,simmim] [--steps 200] [--train 18000] [--precision 32-true]

Takes the trainings of `tests.benchmarks.cookbook OUT` of the same minutes of one core, and trains those that are not
there. The paper's five claims, each with its number: CKA (minibatch, unbiased, mean patches, 1,024 test pictures) of
blocks at the same depth within joint embedding and across the families; at which sites and layers they differ; ridge
regression of the last layer; the probe of positions; CKA to joint embedding before and after fine-tuning on training
pictures. A spread is the standard deviation over the seeds. Numbers are kept in OUT/cells.json.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from granary.training.evaluation.comparison import compared
from granary.training.evaluation.comparison_recipe import CompareRecipe
from tests.benchmarks.cells import Cells, Numbers, bar, mean, scores, shown, spread
from tests.benchmarks.cookbook import FULL, RECIPES, cell_name, length, short_training
from tests.benchmarks.pictures import write_run
from tests.places import CONFIGS

TUNED, RANDOM = " tuned", "random"  # ending of the name of a fine-tuned model; name of the untrained one
ATTENTION = ("norm1", "attention", "norm2")  # sites of attention and normalisation, which are to differ most
OTHERS = ("res1", "mlp", "block")


def measured(models: Mapping[str, str], data: str) -> Numbers:
    """Return CKA by `ONE|OTHER|SITE` and `ONE|OTHER|LAYER` (mean patches), and the scores of each model.

    Args:
        models: by name; one that was fine-tuned or is random is compared, not scored.
        data: the run.
    """
    recipe = CompareRecipe(models=list(models.values()), data={"path": data}, out="none.html", probes=False)
    numbers: Numbers = {}
    for pair in compared(recipe, models)["pairs"]:
        if pair["reduction"] == "mean":
            numbers |= _cka(pair)
    for name, model in models.items():
        if not name.endswith(TUNED) and name != RANDOM:
            found = scores(model, data, {"linear": {"solver": "ridge", "layers": 1}, "position": {}})
            numbers |= {f"{name}|{key}": found[f"{key}.accuracy"] for key in ("linear", "position")}
    return numbers


def _cka(pair: Mapping[str, Any]) -> Numbers:
    """Return the numbers of a pair, under both orders of its names."""
    values = {kind: value for kind, value in pair["kinds"].items() if value is not None}
    values |= {f"layer {layer}": value for layer, value in pair["depth"] if value is not None}
    names = {(pair["one"], pair["other"]), (pair["other"], pair["one"])}
    return {f"{one}|{other}|{key}": value for one, other in names for key, value in values.items()}


def tuned(model: str, data: str, out: Path, steps: int) -> str:
    """Fine-tune a model on the training pictures; returns the folder."""
    if not (out / "config.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        scores(model, data, {"fine-tune": {"steps": steps, "out": str(out)}})
    return str(out)


class Families:
    """What was measured of two families of methods, by seed.

    Args:
        joint: methods of joint embedding.
        reconstruction: methods of reconstruction.
        table: numbers by seed.
    """

    def __init__(self, joint: Sequence[str], reconstruction: Sequence[str], table: Mapping[int, Numbers]) -> None:
        self.joint, self.reconstruction, self.table = joint, reconstruction, table
        self.within = list(itertools.combinations(joint, 2))
        self.across = list(itertools.product(joint, reconstruction))

    def cka(self, pairs: Iterable[tuple[str, str]], site: str) -> list[float]:
        """Return for each seed the mean CKA of pairs at a site."""
        chosen = list(pairs)
        return [mean(numbers[f"{a}|{b}|{site}"] for a, b in chosen) for numbers in self.table.values()]

    def gap(self, site: str) -> list[float]:
        """Return for each seed how much more alike joint embeddings are to one another than to reconstruction."""
        return _less(self.cka(self.within, site), self.cka(self.across, site))

    def score(self, key: str) -> list[float]:
        """Return for each seed the score of joint embedding less that of reconstruction, means over methods."""
        means = ([mean(n[f"{m}|{key}"] for m in family) for n in self.table.values()] for family in self._families())
        return _less(*means)

    def shift(self) -> list[float]:
        """Return for each seed how much nearer fine-tuning brings reconstruction to joint embedding, mean of blocks."""
        after = [(one, other + TUNED) for one, other in self.across]
        return _less(self.cka(after, "block"), self.cka(self.across, "block"))

    def _families(self) -> tuple[Sequence[str], Sequence[str]]:
        return self.joint, self.reconstruction

    def layers(self) -> list[str]:
        """Return the names of the layers that all pairs have, in their order."""
        one, other = self.across[0]
        keys = [key.split("|")[2] for key in next(iter(self.table.values())) if key.startswith(f"{one}|{other}|layer ")]
        return sorted(keys, key=lambda name: int(name.split()[1]))


def _less(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ones, others, strict=True)]


def report(found: Families) -> None:
    """Print CKA by site and by layer, scores, and whether each claim holds."""
    print(f"\n{'CKA':>10}{'within joint':>16}{'across':>16}{'gap':>16}")
    for site in (*ATTENTION, *OTHERS, *found.layers()):
        rows = found.cka(found.within, site), found.cka(found.across, site), found.gap(site)
        print(f"{site:>10}" + "".join(f"{shown(row):>16}" for row in rows))
    for method in (*found.joint, *found.reconstruction):
        columns = {key: [n[f"{method}|{key}"] for n in found.table.values()] for key in ("linear", "position")}
        columns["to random"] = found.cka([(method, RANDOM)], "block")
        print(f"{method:>12}: " + ", ".join(f"{key} {shown(values, 100)}" for key, values in columns.items()))
    gap, shift = found.gap("block"), found.shift()
    bar(
        f"1: within joint embedding CKA is above that across by {shown(gap)}, twice the spread",
        mean(gap) > 2 * spread(gap),
    )
    early, late = (mean(found.gap(layer)) for layer in (found.layers()[1], found.layers()[-1]))
    bar(f"2a: the gap is there after the first block, {early:.3f} of {late:.3f} after the last", early > late / 2 > 0)
    attention, others = (mean(mean(found.gap(site)) for site in sites) for sites in (ATTENTION, OTHERS))
    bar(f"2b: it is larger at attention and norms, {attention:.3f}, than elsewhere, {others:.3f}", attention > others)
    linear, position = found.score("linear"), found.score("position")
    bar(f"3: the linear probe of joint embedding is above by {shown(linear, 100)} points", mean(linear) > 0)
    bar(
        f"4: the probe of positions of reconstruction is above by {shown([-x for x in position], 100)} points",
        mean(position) < 0,
    )
    bar(f"5: fine-tuned, reconstruction is nearer to joint embedding by {shown(shift)}", mean(shift) > 0)


def main() -> None:
    """Train and measure what is not there, and print the claims."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default="0,1,2")
    for name, default in (("--joint", "simclr_vit,msn"), ("--reconstruction", "mae,simmim")):
        parser.add_argument(name, type=lambda text: text.split(","), default=default)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--train", type=int, default=18_000)
    parser.add_argument("--precision", default=FULL)
    given = parser.parse_args()
    data, cells = write_run(given.out / f"cifar-{given.train}", "cifar", given.train), Cells(given.out / "cells.json")
    table: dict[int, Numbers] = {}
    for seed in given.seeds:
        models = {RANDOM: f"random:{CONFIGS / 'train' / RECIPES[given.joint[0]]}"}
        for method in (*given.joint, *given.reconstruction):
            folder = given.out / cell_name(method, given.minutes, seed, given.train, given.precision)
            _, steps = length(method, data, given.out, cells, given.minutes, given.precision)
            models[method] = short_training(RECIPES[method], data, folder, seed, steps, given.precision)
        for method in given.reconstruction:
            folder = Path(f"{models[method]}-tuned-{given.steps}")
            models[method + TUNED] = tuned(models[method], data, folder, given.steps)
        families = "+".join((*given.joint, *given.reconstruction))
        cell = cell_name(
            f"objectives-{families}-tuned-{given.steps}", given.minutes, seed, given.train, given.precision
        )
        table[seed] = cells.measured(cell, partial(measured, models, data))
    report(Families(given.joint, given.reconstruction, table))


if __name__ == "__main__":
    main()
