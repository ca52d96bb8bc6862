"""LongVU at a small scale (arXiv 2410.17434): a needle of two frames in a video of 64, and a question about it.

    python -m tests.benchmarks.longvu OUT [--seed 0] [--steps 500] [--arms all,uniform,temporal,query,full]

Renders configs/render/needles_demo.yaml, trains the encoder of SigLIP on its pictures and captions, and then the
language model of configs/train/longvu_tiny.yaml once for each way to bring a video within the same budget: all, every
token of every frame, which the budget does not bind; uniform, frames in equal steps; temporal, frames unlike their
window; query, and the resolution by the question; full, and without patches that do not change. Videos of the test
split show pictures that no training saw. Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

from granary.pipelines import command
from tests.benchmarks.cells import Cells, Numbers, bar, scores, trained
from tests.places import CONFIGS

ARMS = ("all", "uniform", "temporal", "query", "full")
ENCODER_STEPS = 400
MOST, WITHIN, ABOVE = 0.25, 3.0, 25.0  # share of all tokens; points below all, and above uniform


def prepared(out: Path) -> tuple[str, str]:
    """Render the videos and train the encoder, unless they are there; returns run and training directory."""
    run = str(out / "run")
    if command.main(["render", "--config", str(CONFIGS / "render" / "needles_demo.yaml"), "--out", run]):
        raise SystemExit("the videos could not be rendered")
    settings = {"model__img_size": 32, "options__flip": 0, "steps": ENCODER_STEPS, "workers": 0}
    return run, trained("siglip_tiny.yaml", run, out / "encoder", **settings)


def cell(out: Path, name: str, run: str, encoder: str, arm: str, seed: int, steps: int) -> Numbers:
    """Train and measure an arm; seconds are of this process's processor time."""
    features = {"features__model": encoder, "features__cache": str(out / "features")}
    before = time.process_time()
    model = trained("longvu_tiny.yaml", run, out / name, seed=seed, steps=steps, options__reduction=arm, **features)
    seconds = time.process_time() - before
    found = scores(model, run, {"video-vqa": {}}, "cpu", split="test")
    return {key.removeprefix("video-vqa."): value for key, value in found.items()} | {"seconds": seconds}


def report(table: Mapping[str, Numbers]) -> None:
    """Print what each arm answers, and whether what the paper says was seen."""
    for arm, numbers in table.items():
        kinds = ", ".join(f"{kind} {100 * numbers[f'accuracy.{kind}']:.1f}" for kind in ("what", "world"))
        print(
            f"{arm:9} {100 * numbers['accuracy']:5.1f} % ({kinds}; chance {100 * numbers['accuracy.chance']:.1f}), "
            f"{numbers['tokens']:.1f} tokens, {100 * numbers['tokens.share']:.1f} % of all; {numbers['seconds']:.0f} s"
        )
    if not {"all", "uniform", "full"} <= table.keys():
        return
    full, every, uniform = (table[arm] for arm in ("full", "all", "uniform"))
    below, above = (100 * (full["accuracy"] - other["accuracy"]) for other in (every, uniform))
    bar(f"full reads {100 * full['tokens.share']:.1f} % of all tokens, at most 25", full["tokens.share"] <= MOST)
    bar(f"full is {below:+.1f} points beside all tokens, at least -3", below >= -WITHIN)
    bar(f"full is {above:+.1f} points beside uniform frames, at least +25", above >= ABOVE)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--arms", type=lambda text: text.split(","), default=",".join(ARMS))
    given = parser.parse_args()
    run, encoder = prepared(given.out)
    cells, table = Cells(given.out / "cells.json"), {}
    for arm in given.arms:
        name = f"{arm}-seed-{given.seed}-steps-{given.steps}"
        table[arm] = cells.measured(
            name, lambda arm=arm, name=name: cell(given.out, name, run, encoder, arm, given.seed, given.steps)
        )
    report(table)


if __name__ == "__main__":
    main()
