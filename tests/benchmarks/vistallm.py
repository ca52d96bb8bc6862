"""VistaLLM at a small scale (arXiv 2312.12423): boxes, masks, what is not there, which of four pictures show a thing.

    python -m tests.benchmarks.vistallm OUT [--steps 1000] [--pictures 1500] [--seed 0] [--threads 1]

Renders pictures of 64 px with one or two of five things of the embedded world, in eight places, three sizes and eight
directions, packs instructions and groups of four pictures from them, and trains configs/train/vistallm_tiny.yaml on
both, three rows of one picture to one group. The answers about held-out pictures are decoded by the grammar, beside
those of the same model about the pictures of other rows. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import granary
from tests.benchmarks.cells import Cells, Numbers, bar, scores, trained

THINGS = ("Car", "Elephant", "Goldfish", "Mushroom", "Penguin")
WORLDS, SCALES, YAWS = ("Desert", "Meadow"), (0.8, 1.0, 1.25), (0, 45, 90, 135, 180, 225, 270, 315)
PLACES = {
    f"{side}{number}": (sign * across, up)
    for side, sign in (("left", -1), ("right", 1))
    for number, (across, up) in enumerate(((40.0, 0.0), (62.0, 0.0), (50.0, 30.0), (60.0, 50.0)))
}
SIDE, ALONE, TEST = 64, 0.3, 0.15  # pixels; share of pictures of one thing; of pictures that are held out
BARS: Mapping[str, tuple[str, float]] = {
    "referring.box.accuracy": ("box accuracy at 0.5", 0.6),
    "referring.mask.miou": ("mIoU of masks", 0.5),
    "referring.no_target": ("what is not there is recognised", 0.9),
    "cosegmentation.choice": ("the choice of pictures", 0.6),
}
ABOVE = 0.25  # of the same model with the pictures of other rows


def rows_of(count: int) -> list[dict[str, str | float]]:
    """Return the factors of so many pictures, no two alike."""
    random = np.random.default_rng(0)
    options: dict[str, tuple[str | float, ...]] = {
        "world_name": WORLDS,
        **{f"{slot}_name": THINGS for slot in ("character", "character2")},
        **{f"{slot}_scale": SCALES for slot in ("character", "character2")},
        **{f"{slot}_rotation_yaw": YAWS for slot in ("character", "character2")},
        "character1_pos": tuple(place for place in PLACES if place.startswith("left")),
        "character2_pos": tuple(place for place in PLACES if place.startswith("right")),
    }
    rows = dict[tuple[object, ...], dict[str, str | float]]()
    while len(rows) < count:
        row = {column: values[int(random.integers(len(values)))] for column, values in options.items()}
        if random.random() < ALONE:
            row[("character_name", "character2_name")[int(random.integers(2))]] = "blank"
        if row["character_name"] != row["character2_name"]:
            rows.setdefault(tuple(row.values()), row)
    return list(rows.values())


def rendered(folder: Path, count: int) -> Path:
    """Render the pictures, unless they are there; returns the folder."""
    rows = rows_of(count)
    granary.render(
        out=folder,
        factors={column: sorted({row[column] for row in rows}) for column in rows[0]},
        plan={"kind": "list", "rows": rows},
        scene={"distance": 290, "height": 60, "places": {place: list(where) for place, where in PLACES.items()}},
        splits=[{"split": "test", "rows": round(TEST * count)}],
        outputs={"mask": True},
        image={"width": SIDE, "height": SIDE},
        checks={"twice": 0, "visible": 12},
    )
    return folder


def packed(folder: Path, renders: Path, pictures: int) -> str:
    """Pack instructions about the pictures and groups of four, as many as pictures; returns the folder."""
    run = granary.pack(
        data=[str(renders)], out=folder, format="instructions", tasks=["box", "mask", "count"], quiet=True,
        groups={"count": pictures, "attributes": ["name"]},
    )  # fmt: skip
    return run.url


def measured(data: str, out: Path, steps: int, seed: int, threads: int) -> Numbers:
    """Train, and measure on the pictures that are held out."""
    mixture = f"{data} * 3 + {data}/dataset/groups"
    fields = {"steps": steps, "seed": seed, "device__threads": threads, "logs__tensorboard": False}
    fields["options__tasks"] = "[box,mask,group]"
    model = trained("vistallm_tiny.yaml", mixture, out, **fields)
    protocols: dict[str, Mapping[str, object]] = {"referring": {}, "cosegmentation": {}}
    return scores(model, data, protocols, device="cpu", split="test")


def report(numbers: Numbers) -> None:
    """Print what was reached, beside the pictures of other rows, and whether the bars hold."""
    for key, (what, least) in BARS.items():
        value, other = numbers[key], numbers[f"{key}.permuted"]
        print(f"{what}: {100 * value:.1f} %, with the pictures of other rows {100 * other:.1f} %")
        bar(f"{what} is at least {100 * least:.0f} %", value >= least)
        bar(f"{what} is 25 points above the pictures of other rows", value - other >= ABOVE)


def main() -> None:
    """Render, pack, train and measure what is not there, and print the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, default in (("steps", 1000), ("pictures", 1500), ("seed", 0), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    renders = rendered(given.out / f"renders-{given.pictures}", given.pictures)
    data = packed(given.out / f"run-{given.pictures}", renders, given.pictures)
    name = f"steps-{given.steps}-pictures-{given.pictures}-seed-{given.seed}"
    cells, out = Cells(given.out / "cells.json"), given.out / name
    report(cells.measured(name, lambda: measured(data, out, given.steps, given.seed, given.threads)))


if __name__ == "__main__":
    main()
