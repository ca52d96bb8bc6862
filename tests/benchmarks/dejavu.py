"""Déjà vu at a small scale (arXiv 2304.13850): what two twins know by heart of pictures whose ground says nothing of
their object, and how much of that the removal of near copies takes away.

    python -m tests.benchmarks.dejavu OUT [--seeds 0,1] [--steps 800] [--per-class 100] [--public 300]
        [--layouts 1x4,0.25x16] [--k 20] [--set options.temperature=0.2]

The pictures are those of tests/benchmarks/planted.py, parted by `granary partition`: with the defaults A and B have
1,000 and X 3,000. Twins are trained on A and on B by configs/train/simclr_resnet_tiny.yaml at temperature 0.15, with
crops from 8 % of a picture, so that some show the ground alone; --set changes the recipe of all trainings. 800 steps of
128 are 102 passes over A. They attack the place beside the garment, as `granary evaluate dejavu` does, at
every fifth of the steps too; beside them stand untrained twins, and some of one pass.

A layout SHARExCOPIES plants so many near copies of each of a share of A and B. The parts are then drawn again, by
granary's own join, once with the copies (kept: each in the part of its original) and once without (removed). Twins are
trained on both for the same number of steps, and attacked by the same pictures: with copies of all pictures that is
fewer passes over more, with copies of some it shifts what is seen often. Both of the default layouts make five of a
picture in the mean, so that the copies after all steps and the removed after a fifth of them saw as many passes over
their pictures. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from granary.curation.store.sampling import priority
from granary.training.evaluation.partition import write_partition
from granary.training.evaluation.partition_recipe import PartitionRecipe
from tests.benchmarks.cells import Cells, Numbers, bar, mean, scores, shown, trained
from tests.benchmarks.planted import CLASSES, Row, copy_of, planted, read_rows, write_rows

CONFIG, BATCH, FIFTHS = "simclr_resnet_tiny.yaml", 128, 5
LEAST = 7  # pixels: of a picture of 32 with a garment of 16 at least 8 are beside it
THRESHOLD = 0.9  # of copies: of 5,000 pictures 12 pairs that nobody copied are above it, of 1,500 copies 5 below
HELD = 0.2  # share of the public pictures that tests the linear probe
SITES = ("projector", "backbone")
CLEAN, KEPT, REMOVED = "clean", "kept", "removed"


class Setting(NamedTuple):
    """What trainings share: pictures of a class in A, in X; steps; neighbours that vote; changes `KEY=VALUE`."""

    per_class: int
    public: int
    steps: int
    k: int
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as part of a name."""
        return "-".join([f"{self.per_class}-{self.public}-{self.steps}-{self.k}", *self.changes])

    @property
    def batch(self) -> int:
        """Return the pictures of a step."""
        return min(BATCH, self.per_class * len(CLASSES))


class Layout(NamedTuple):
    """Near copies: the share of the pictures that have some, and how many each of them has."""

    share: float
    copies: int

    def __str__(self) -> str:
        """Return it as on the command line."""
        return f"{self.share:g}x{self.copies}"

    @property
    def times(self) -> float:
        """Return how many pictures there are of one, in the mean."""
        return 1 + self.share * self.copies


class Arm(NamedTuple):
    """Pictures without copies, or those of a layout with their copies kept or removed."""

    layout: Layout | None
    kind: str

    def __str__(self) -> str:
        """Return its name."""
        return f"{self.layout}-{self.kind}" if self.layout else self.kind


Table = Mapping[tuple[Arm, int], Numbers]  # by arm and seed


def parted(rows: Callable[[], Sequence[Row]], folder: Path, setting: Setting, seed: int, copies: str) -> str:
    """Write rows as a run of `granary partition`, unless it is there; returns its folder."""
    out = folder / copies
    if not (out / "partition.json").exists():
        shutil.rmtree(out, ignore_errors=True)  # of a measurement that was stopped
        run = write_rows(folder / "pool", rows())
        fields = {"data": run, "out": str(out), "per_class": setting.per_class, "copies": copies}
        write_partition(
            PartitionRecipe.model_validate({**fields, "seed": seed, "threshold": THRESHOLD, "device": "cpu"}),
            lambda _: None,
        )
    return str(out)


def clean_run(folder: Path, setting: Setting, seed: int) -> str:
    """Return the folder of the parts of the pictures without copies."""
    count = 2 * setting.per_class + setting.public
    return parted(lambda: list(planted(count, seed)), folder, setting, seed, "remove")


def with_copies(clean: str, layout: Layout, seed: int) -> Iterator[Row]:
    """Yield the pictures of a run of parts, and near copies of a share of A and B; column copied says of which."""
    for row in read_rows(clean):
        chance = float(priority(seed, [str(row["id"])], "copied")[0]) / 2.0**64
        copied = row.pop("part") in ("A", "B") and chance < layout.share
        yield {**row, "copied": "yes" if copied else "no"}
        if copied:
            yield from (copy_of(row, number, seed) for number in range(layout.copies))


def pools(folder: Path, clean: str, layout: Layout, setting: Setting, seed: int) -> tuple[str, str, Numbers]:
    """Return the runs of parts with the near copies of a layout and without, and how well the copies were found."""
    kept, removed = (
        parted(lambda: list(with_copies(clean, layout, seed)), folder, setting, seed, copies)
        for copies in ("keep", "remove")
    )
    before = {row["id"]: row["part"] for row in read_rows(clean)}
    after = {row["id"]: row["part"] for row in read_rows(removed)}
    copies = after.keys() - before.keys()
    moved = [name for name, part in before.items() if part in ("A", "B") and after[name] != part]
    left = sum(after[name] is not None for name in copies)
    return kept, removed, {"copies": len(copies), "copies.left": left, "originals.moved": len(moved)}


def attacked(
    models: Sequence[str], data: str, setting: Setting, split: str | None = None, **options: object
) -> Numbers:
    """Return the numbers of `granary evaluate dejavu`, without its name."""
    fields = {"reference": models[1], "k": setting.k, "min_side": LEAST, "percent": [20, 100], **options}
    numbers = scores(models[0], data, {"dejavu": fields}, split=split)
    return {key.removeprefix("dejavu."): value for key, value in numbers.items()}


def twins(run: str, out: Path, setting: Setting, seed: int, steps: int) -> list[str]:
    """Train on A and on B; returns the training directories."""
    fields = {
        "options__temperature": 0.15,
        "options__crop_scale": "[0.08, 1.0]",
        "batch": setting.batch,
        "seed": seed,
        "steps": steps,
        "workers": 0,
    }
    fields |= {"probe__every": 0, "alarm__every": 0, "device__threads": 1, "optimiser__warmup": min(100, steps // 4)}
    fields |= {"checkpoints__every": max(1, steps // FIFTHS), "checkpoints__keep": FIFTHS + 2}
    pairs = (word.partition("=") for word in setting.changes)
    fields |= {key.replace(".", "__"): value for key, _, value in pairs}
    return [trained(CONFIG, run, out / part, split=f"part={part}", **fields) for part in "AB"]


def clean_cell(run: str, out: Path, setting: Setting, seed: int) -> Numbers:
    """Return what twins know of pictures without copies: trained, of one pass, and untrained."""
    models = twins(run, out, setting, seed, setting.steps)
    numbers = attacked(models, run, setting, checkpoints=True)
    once = twins(run, out / "once", setting, seed, math.ceil(setting.per_class * len(CLASSES) / setting.batch))
    numbers |= prefixed("once", attacked(once, run, setting))
    untrained = [f"random:{name}" for name in models]
    return numbers | prefixed("untrained", attacked(untrained, run, setting, reference_seed=1))


def copies_cell(run: str, data: str, out: Path, setting: Setting, seed: int, layout: Layout) -> Numbers:
    """Return what twins that are trained on one run know of the pictures of another, by whether these have copies."""
    models = twins(run, out, setting, seed, setting.steps)
    numbers = attacked(models, data, setting, checkpoints=True)
    if layout.share < 1:
        for name, value in (("copied", "yes"), ("single", "no")):
            numbers |= prefixed(name, attacked(models, data, setting, f"copied={value}"))
    return numbers


def prefixed(name: str, numbers: Numbers) -> Numbers:
    """Return numbers under a name."""
    return {f"{name}.{key}": value for key, value in numbers.items()}


class Gap(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it is more than three standard errors from 0."""
        return abs(self.value) > 3 * self.error

    @property
    def clear_gain(self) -> bool:
        """Whether it is more than three standard errors above 0."""
        return self.value > 3 * self.error

    def __str__(self) -> str:
        """Return it in points."""
        return f"{100 * self.value:.1f} ± {100 * self.error:.1f}"

    def __sub__(self, other: Gap) -> Gap:
        """Return the difference, the errors taken as independent."""
        return Gap(self.value - other.value, math.hypot(self.error, other.error))


def score(cells: Sequence[Numbers], key: str) -> Gap:
    """Return the mean of a déjà vu score over seeds, with its standard error."""
    errors = [cell[f"{key}.error"] for cell in cells]
    return Gap(mean(cell[key] for cell in cells), math.hypot(*errors) / len(cells))


def report(table: Table, layouts: Sequence[Layout], seeds: Sequence[int]) -> None:
    """Print scores, whether what the paper says was seen, and what the removal of copies takes away.

    Args:
        table: what was measured.
        layouts: of copies.
        seeds: of the trainings.
    """
    columns = [f"{site}.{key}" for site in SITES for key in ("score_20", "score_100", "memorised")]
    columns += ["projector.score_100.target", "projector.score_100.reference", "linear"]
    print(f"\n{'':>14}" + "".join(f"{title:>31}" for title in columns))
    arms = [Arm(None, CLEAN), *(Arm(layout, kind) for layout in layouts for kind in (KEPT, REMOVED))]
    for arm in arms:
        cells = [table[arm, seed] for seed in seeds]
        print(f"{arm!s:>14}" + "".join(f"{shown((cell[key] for cell in cells), 100):>31}" for key in columns))
    bars([table[arms[0], seed] for seed in seeds])
    for layout in layouts:
        removal(table, layout, seeds)


def bars(cells: Sequence[Numbers]) -> None:
    """Print what must be seen of pictures without copies, in the mean over seeds."""
    whole = score(cells, "projector.score_20")
    bar(f"déjà vu of the surest fifth is 10 points or more, {whole}", whole.value >= 0.1 and whole.clear_gain)
    for title, name in (("untrained twins", "untrained"), ("twins of one pass", "once")):
        gap = score(cells, f"{name}.projector.score_20")
        bar(f"that of {title} is within 3 standard errors of 0, {gap}", not gap.clear)
    chance = 1 / len(CLASSES)
    for percent in (20, 100):
        key = f"projector.score_{percent}"
        count = sum(cell[f"{key}.pictures"] for cell in cells)
        gap = Gap(mean(cell[f"{key}.reference"] for cell in cells) - chance, math.sqrt(chance * (1 - chance) / count))
        bar(f"the reference is within 3 standard errors of chance, {percent} % of the crops: {gap}", not gap.clear)
    backbone = score(cells, "backbone.score_20")
    bar(f"that of the backbone, {backbone}, is below that of the projector", backbone.value < whole.value)
    probes = linear_gap(cells)
    bar(f"linear probes of both are within 3 standard errors of one another, {probes}", not probes.clear)
    steps = sorted({int(key.split(".")[0].removeprefix("step_")) for key in cells[0] if key.startswith("step_")})
    over = [score(cells, f"step_{step}.projector.score_100") for step in steps]
    print(f"all crops, after steps {', '.join(map(str, steps))}: {', '.join(map(str, over))} points")
    bar("déjà vu grows with the steps, by more than 3 standard errors", (over[-1] - over[0]).clear_gain)


def linear_gap(cells: Sequence[Numbers]) -> Gap:
    """Return the accuracy of the linear probe of the target less that of the reference."""
    tests = HELD * sum(cell["pictures.public"] for cell in cells)
    pairs = [(cell["linear"], cell["linear.reference"]) for cell in cells]
    both = mean(mean(pair) for pair in pairs)
    return Gap(mean(one - other for one, other in pairs), math.sqrt(2 * both * (1 - both) / tests))


def removal(table: Table, layout: Layout, seeds: Sequence[int]) -> None:
    """Print how much of the déjà vu of pictures with copies their removal takes away."""
    kept, removed = ([table[Arm(layout, kind), seed] for seed in seeds] for kind in (KEPT, REMOVED))
    planted_copies, left, moved = (
        sum(cell[key] for cell in removed) for key in ("copies", "copies.left", "originals.moved")
    )
    print(
        f"\n{layout}: of {planted_copies:,.0f} copies {left:,.0f} are left, {moved:,.0f} originals changed their part"
    )
    views = {"all": ""} if layout.share == 1 else {"all": "", "with copies": "copied.", "without": "single."}
    for title, prefix in views.items():
        for percent in (20, 100):
            key = f"{prefix}projector.score_{percent}"
            print(f"  {title}, {percent} % of the crops: {told(score(kept, key), score(removed, key))}")
    steps = sorted({int(key.split(".")[0].removeprefix("step_")) for key in kept[0] if key.startswith("step_")})
    if layout.times == FIFTHS:  # as many passes over its pictures
        first = score(removed, f"step_{steps[0]}.projector.score_100")
        whole = score(kept, f"step_{steps[-1]}.projector.score_100")
        print(f"  all, 100 % of the crops, after as many passes: {told(whole, first)}")
    if layout.share < 1:
        gap = score(kept, "copied.projector.score_100") - score(removed, "copied.projector.score_100")
        bar("removal takes away from what is known of pictures with copies, 3 standard errors", gap.clear_gain)


def told(kept: Gap, removed: Gap) -> str:
    """Say what a removal takes away, in points and as a share of what is there."""
    share = f", {(kept - removed).value / kept.value:.0%}" if kept.value > 0 else ""
    return f"{kept} with copies, {removed} without: {kept - removed} points{share} taken away"


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default="0,1")
    parser.add_argument("--layouts", type=layouts_of, default="1x4,0.25x16")
    for name, count in (("--steps", 800), ("--per-class", 100), ("--public", 300), ("--k", 20)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe of all trainings"
    )
    given = parser.parse_args()
    setting = Setting(given.per_class, given.public, given.steps, given.k, tuple(given.set))
    cells, table = Cells(given.out / "cells.json"), {}
    for seed in given.seeds:
        for arm, work in works(given.out, setting, given.layouts, seed):
            table[arm, seed] = cells.measured(f"{arm}-seed-{seed}-{setting}", work)
    report(table, given.layouts, given.seeds)


def layouts_of(text: str) -> list[Layout]:
    """Return the layouts of a command line; none of an empty text."""
    pairs = [word.split("x") for word in text.split(",") if word]
    return [Layout(float(share), int(copies)) for share, copies in pairs]


def works(
    out: Path, setting: Setting, layouts: Sequence[Layout], seed: int
) -> Iterator[tuple[Arm, Callable[[], Numbers]]]:
    """Yield each arm with what measures it; the pictures of a seed are made once."""
    name = f"seed-{seed}-{setting.per_class}-{setting.public}"
    clean = partial(clean_run, out / "pictures" / name, setting, seed)
    folder = out / f"seed-{seed}-{setting}"
    yield Arm(None, CLEAN), lambda: clean_cell(clean(), folder / CLEAN, setting, seed)
    for layout in layouts:
        for kind in (KEPT, REMOVED):
            arm = Arm(layout, kind)
            yield arm, partial(layout_cell, out / "pictures" / f"{name}-{layout}", clean, folder, arm, setting, seed)


def layout_cell(
    pictures: Path, clean: Callable[[], str], folder: Path, arm: Arm, setting: Setting, seed: int
) -> Numbers:
    """Return the numbers of an arm with copies."""
    assert arm.layout is not None
    kept, removed, counts = pools(pictures, clean(), arm.layout, setting, seed)
    run = kept if arm.kind == KEPT else removed
    return counts | copies_cell(run, removed, folder / str(arm), setting, seed, arm.layout)


if __name__ == "__main__":
    main()
