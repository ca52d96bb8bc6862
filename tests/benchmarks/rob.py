"""RoB at a small scale (arXiv 2301.09451): a small student of a frozen teacher against the same student alone.

    python -m tests.benchmarks.rob OUT [--seeds 0,1,2] [--bases dinov2,dino,ibot,swav,msn] [--students vit,resnet]
        [--steps 1600] [--train 18000] [--teacher-steps N]

Trains configs/train/BASE_tiny.yaml on CIFAR-10 of ../shared/data once for each base: the teacher. Then three trainings
of each student for the same steps and batch, on the same large views: scratch by the base's own recipe, features by
simreg_tiny.yaml (the squared distance to the teacher's features, by a linear adapter), and rob by rob_tiny.yaml. The
first base has all seeds, the others the first one. linear is ridge regression on the last features of 2,000 pictures,
kNN has k 20, and KL is the divergence of the student from the targets of its last batch, in nats, with the entropy of
the targets taken from the cross-entropy. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from granary.training.recipe import TrainRecipe
from tests.benchmarks.cells import Cells, Numbers, bar, mean, recipe_of, scores, shown, trained
from tests.benchmarks.pictures import write_run

ARMS = ("scratch", "features", "rob")
STUDENTS: dict[str, dict[str, Any]] = {
    "vit": {"width": 64, "depth": 3, "heads": 2, "patch_size": 4, "layer_scale": 0.0, "class_token": True},
    "resnet": {"kind": "resnet", "widths": [16, 32, 64], "depths": [1, 1, 1], "stem": "small"},
}
PROTOCOLS: dict[str, dict[str, object]] = {"linear": {"solver": "ridge", "layers": 1}, "knn": {"k": 20}}
COLUMNS = {"linear %": "linear.accuracy", "kNN %": "knn.accuracy"}
Key = tuple[str, str, str, int]  # base, student, arm and seed
Table = Mapping[Key, Numbers]


def config_of(base: str, arm: str) -> str:
    """Return the recipe of an arm."""
    return {"scratch": f"{base}_tiny.yaml", "features": "simreg_tiny.yaml", "rob": "rob_tiny.yaml"}[arm]


def tiny(base: str) -> TrainRecipe:
    """Return the tiny recipe of a base."""
    return recipe_of(f"{base}_tiny.yaml", "RUN", "OUT")


def fits(base: str, student: str) -> bool:
    """Say whether a base trains a student: MSN drops patches."""
    return base != "msn" or student == "vit"


def fields_of(base: str, student: str, arm: str, teacher: str) -> dict[str, object]:
    """Return what the training of an arm changes of its recipe.

    Args:
        base: its method trained the teacher.
        student: of STUDENTS.
        arm: of ARMS.
        teacher: the training directory of the teacher.
    """
    recipe = tiny(base)
    fields: dict[str, object] = {
        "model": json.dumps({**STUDENTS[student], "img_size": recipe.model.img_size}),
        "batch": recipe.batch,
    }
    if arm != "scratch":
        fields["options__teacher"] = teacher
    if arm == "features":
        fields |= {f"options__{name}": json.dumps(value) for name, value in large_views(recipe.options).items()}
    elif student == "resnet" and recipe.options.get("ibot"):
        fields["options__ibot"] = 0.0  # it has no patches to mask
    return fields


def large_views(options: Mapping[str, Any]) -> dict[str, object]:
    """Return the options of simreg for the large views of a base."""
    names = ("crop_size", "crop_scale", "jitter", "grey", "strength", "saturation", "blur")
    if "global_size" in options:
        own = {"crop_size": options["global_size"], "crop_scale": options["global_scale"], "blur": options["blur"][0]}
        return {name: {**options, **own}[name] for name in names if name in {**options, **own}}
    return {name: options[name] for name in names}


def cell(data: str, out: Path, config: str, fields: Mapping[str, object], seed: int, steps: int | None) -> Numbers:
    """Train and measure."""
    length = {} if steps is None else {"steps": steps}
    training = trained(config, data, out, **fields, **length, seed=seed, probe__every=0)
    metrics = json.loads(Path(training, "run.json").read_text())["metrics"]
    return {name: metrics[name] for name in ("kl", "ibot_kl") if name in metrics} | scores(training, data, PROTOCOLS)


def report(table: Table, bases: Sequence[str], students: Sequence[str], seeds: Sequence[int]) -> None:
    """Print mean and deviation of each arm, and whether what the paper says was seen."""
    print(f"\n{'base':<8}{'student':<8}{'arm':<10}" + "".join(f"{title:>16}" for title in [*COLUMNS, "KL, nats"]))
    for base, student, arm in itertools.product(bases, students, ARMS):
        rows = [table[base, student, arm, seed] for seed in seeds if (base, student, arm, seed) in table]
        if rows:
            cells = [shown((row[key] for row in rows), 100) for key in COLUMNS.values()]
            cells.append(shown(row["kl"] for row in rows) if "kl" in rows[0] else "")
            print(f"{base:<8}{student:<8}{arm:<10}" + "".join(f"{text:>16}" for text in cells))
    for base, student in itertools.product(bases, students):
        if fits(base, student):
            bars(table, base, student, seeds if base == bases[0] else seeds[:1], base == bases[0])


def bars(table: Table, base: str, student: str, seeds: Sequence[int], main: bool) -> None:
    """Print the bars of a student of a base.

    Args:
        table: numbers of every cell.
        base, student: whose.
        seeds: that were trained.
        main: whether it is the base that must gain three points, and be compared with features.
    """
    linear = {arm: mean(table[base, student, arm, seed]["linear.accuracy"] for seed in seeds) for arm in ARMS}
    gain, beyond = (linear["rob"] - linear[arm] for arm in ("scratch", "features"))
    name = f"{base}, {student}: linear of RoB"
    if main:
        bar(f"{name} is 3 points above scratch, {100 * gain:.1f}", gain >= 0.03)
        bar(f"{name} is not below regression of features, {100 * beyond:.1f}", beyond >= 0)
    else:
        bar(f"{name} is above scratch, {100 * gain:.1f}", gain > 0)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--bases", type=lambda text: text.split(","), default=["dinov2", "dino", "ibot", "swav", "msn"])
    parser.add_argument("--students", type=lambda text: text.split(","), default=list(STUDENTS))
    parser.add_argument("--train", type=int, default=18000)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--teacher-steps", type=int)
    given = parser.parse_args()
    data = write_run(given.out / f"cifar-{given.train}", "cifar", given.train)
    cells, table = Cells(given.out / "cells.json"), dict[Key, Numbers]()
    for base in given.bases:
        name = f"{base}-teacher-steps-{given.teacher_steps or tiny(base).steps}-train-{given.train}"
        teacher = given.out / name
        cells.measured(name, partial(cell, data, teacher, f"{base}_tiny.yaml", {}, 0, given.teacher_steps))
        seeds = given.seeds if base == given.bases[0] else given.seeds[:1]
        for seed, student, arm in itertools.product(seeds, given.students, ARMS):
            if fits(base, student):
                fields = fields_of(base, student, arm, str(teacher))
                own = f"{name}-{student}-{arm}-seed-{seed}-steps-{given.steps}"
                work = partial(cell, data, given.out / own, config_of(base, arm), fields, seed, given.steps)
                table[base, student, arm, seed] = cells.measured(own, work)
    report(table, given.bases, given.students, given.seeds)


if __name__ == "__main__":
    main()
