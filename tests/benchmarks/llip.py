"""Llip at a small scale (arXiv 2405.00740): where a caption names one of the things in a picture, several vectors of
the picture that the caption mixes are to find more of them than one vector; where captions name everything, not.

    python -m tests.benchmarks.llip OUT [--seeds 0,1,2] [--steps 1500] [--pictures 4000] [--temperature 1]

Renders pictures of two things of the embedded world side by side, 64 px, and trains with the sizes and the schedule of
configs/train/llip_tiny.yaml: CLIP; SigLIP's loss on CLIP's encoders; the same with four registers that no loss reads; a
uniform mixture of four tokens; Llip with four. One pair of things in six is held out. mAP is the mean average precision
of the names of all things for a held-out picture: both of its own must come first. With captions of both things SigLIP
and Llip are trained again. strongest is the share of pictures in which the two names do not choose the same token.
Numbers are kept in OUT/cells.json; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from datasets import Value
from torch import Tensor

import granary
from granary.curation.store.schema import arrow_schema, sample_features
from granary.training.data.shards import open_dataset
from granary.training.evaluation.pairs import TrainedPair, encode_rows, load_image_text_model
from granary.training.methods.llip import Llip
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
from tests.benchmarks.cells import Cells, Numbers, bar, mean, shown
from tests.places import CONFIGS

THINGS = (
    *("Camel", "Car", "Cat", "Chair", "Elephant", "Goldfish"),
    *("Lion", "Mushroom", "Penguin", "Teapot", "Turtle", "Zebra"),
)
WORLDS, TEXTURES = ("Desert", "Meadow", "Museum", "Snow"), ("Default", "Grass", "Sky")
YAWS = (0, 45, 90, 135, 180, 225, 270, 315)
SIDE, HELD = 64, 6  # of every so many pairs one is held out
TOKENS = 4
Captions = Literal["one", "all"]  # what a caption names
ARMS: Mapping[str, Mapping[str, Any]] = {
    "CLIP": {"method": "clip", "registers": 0, "options": {"loss": "contrastive"}},
    "SigLIP": {"method": "clip", "registers": 0, "options": {"loss": "sigmoid"}},
    "registers unused": {"method": "clip", "registers": TOKENS, "options": {"loss": "sigmoid"}},
    "uniform mixture": {"method": "llip", "registers": TOKENS, "options": {"mixing": "uniform"}},
    "Llip": {"method": "llip", "registers": TOKENS, "options": {"mixing": "text"}},
}
COMPARED = ("SigLIP", "Llip")  # with captions that name everything too
Cell = tuple[str, Captions, int]  # arm, captions, seed


def held_out(one: str, other: str) -> bool:
    """Say whether a pair of things, in either order, is held out of training."""
    pairs = list(itertools.combinations(THINGS, 2))
    return pairs.index((min(one, other), max(one, other))) % HELD == 0


def name_of(thing: str) -> str:
    """Return the words of a caption that name a thing."""
    return f"there is the {thing.lower()}"


def captions_of(one: str, other: str, kind: Captions) -> list[str]:
    """Return the captions of a picture: two that name a thing each, or one in either order that names both."""
    if kind == "one":
        return [name_of(one), name_of(other)]
    return [f"{name_of(first)} and the {second.lower()}" for first, second in ((one, other), (other, one))]


def rendered(folder: Path, count: int) -> Path:
    """Render the pictures, unless they are there; returns the folder."""
    random = np.random.default_rng(0)
    values: dict[str, Sequence[str | int]] = {"world_name": WORLDS, "character_name": THINGS, "character2_name": THINGS}
    for slot in ("character", "character2"):
        values |= {f"{slot}_texture": TEXTURES, f"{slot}_rotation_yaw": YAWS}
    rows = []
    while len(rows) < count:
        row = {column: options[int(random.integers(len(options)))] for column, options in values.items()}
        if row["character_name"] != row["character2_name"]:
            rows.append({**row, "character1_pos": "left", "character2_pos": "right"})
    columns = {**values, "character1_pos": ["left"], "character2_pos": ["right"]}
    granary.render(
        out=folder,
        factors={column: list(options) for column, options in columns.items()},
        plan={"kind": "list", "rows": rows},
        scene={"distance": 330, "height": 50},
        image={"width": SIDE, "height": SIDE},
        checks={"twice": 0},
    )
    return folder


def rows_of(folder: Path, kind: Captions) -> Iterator[dict[str, Any]]:
    """Yield the rendered pictures with captions and splits."""
    for file in sorted((folder / "dataset" / "data").glob("*.parquet")):
        for row in pq.read_table(file, columns=["id", "image", "character_name", "character2_name"]).to_pylist():
            one, other = row["character_name"], row["character2_name"]
            yield {
                "id": row["id"], "image": row["image"], "width": SIDE, "height": SIDE, "label": None,
                "captions": captions_of(one, other, kind), "source": None,
                "split": "test" if held_out(one, other) else "train", "one": one, "other": other,
            }  # fmt: skip


def write_run(folder: Path, pictures: Path, kind: Captions) -> str:
    """Write the pictures with captions of a kind as shards, unless they are there; returns the folder."""
    target = folder / "dataset" / "data" / "shard-00000-of-00001.parquet"
    if not target.exists():
        names = {name: Value("string") for name in ("split", "one", "other")}
        schema = arrow_schema(sample_features(names))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(list(rows_of(pictures, kind)), schema), part, row_group_size=100)
        part.rename(target)
    return str(folder)


def trained(arm: str, data: str, out: Path, seed: int, steps: int, temperature: float) -> str:
    """Train an arm with the sizes and the schedule of the recipe; returns the training directory."""
    tree = yaml.safe_load((CONFIGS / "train" / "llip_tiny.yaml").read_text())
    chosen = ARMS[arm]
    mixture = {"heads": tree["options"].pop("heads"), "temperature": temperature}
    tree["options"].pop("temperature")
    tree["options"] |= {**chosen["options"], **(mixture if chosen["method"] == "llip" else {})}
    tree |= {"name": arm, "method": chosen["method"], "data": data, "out": str(out), "seed": seed, "steps": steps}
    tree["model"] |= {"registers": chosen["registers"]}
    tree |= {"logs": {"tensorboard": False}, "alarm": {"every": 0}}
    train(TrainRecipe.model_validate(tree))
    return str(out)


def average_precision(scores: Tensor, right: Tensor) -> float:
    """Return the mean over pictures of the average precision of their right names; equal scores count as wrong ones.

    Args:
        scores: (N, T).
        right: (N, T) bool, one or more in every row.
    """
    precisions = []
    for row, own in zip(scores, right, strict=True):
        better = row[own].sort(descending=True).values
        wrong = (row[~own][None] >= better[:, None]).sum(dim=1)
        place = torch.arange(1, len(better) + 1)
        precisions.append(float((place / (place + wrong)).mean()))
    return mean(precisions)


def measured(model: str, data: str) -> Numbers:
    """Return mAP of the names for held-out pictures, and for a mixture how often the strongest token differs."""
    scorer = load_image_text_model(model)
    assert isinstance(scorer, TrainedPair)
    encoded = encode_rows(scorer, open_dataset(data, ("image", "captions"), "test"), "captions")
    texts = [name_of(thing) for thing in THINGS]
    vectors = scorer.texts(texts)
    own = torch.tensor([[text in row["captions"] for text in texts] for row in encoded.rows])
    numbers = {"mAP": average_precision(scorer.scores(encoded.vectors, vectors), own), "pictures": float(len(own))}
    if isinstance(scorer.model, Llip) and scorer.model.options.mixing == "text":
        with torch.no_grad():
            shares = scorer.model.pool.weights(encoded.vectors.to(scorer.device), vectors.to(scorer.device))
        strongest = shares.mean(dim=1).argmax(dim=2).cpu()  # (N, T), over all heads
        pairs = strongest[own].view(len(own), 2)
        numbers["strongest"] = float((pairs[:, 0] != pairs[:, 1]).double().mean())
    return numbers


def cell(runs: Mapping[Captions, str], out: Path, key: Cell, steps: int, temperature: float) -> Numbers:
    """Train and measure a cell; what is asked for are the names of single things, whatever the captions were."""
    arm, kind, seed = key
    return measured(trained(arm, runs[kind], out, seed, steps, temperature), runs["one"])


def report(table: Mapping[Cell, Numbers], seeds: Sequence[int]) -> None:
    """Print mean and deviation of each arm, and whether what the paper says was seen."""
    values = {
        (arm, kind): [table[arm, kind, seed]["mAP"] for seed in seeds]
        for arm, kind in dict.fromkeys(key[:2] for key in table)
    }
    for (arm, kind), column in values.items():
        print(f"{arm:18} captions name {kind:4} mAP {shown(column, 100)} %")
    gains = [100 * (table["Llip", "one", seed]["mAP"] - table["SigLIP", "one", seed]["mAP"]) for seed in seeds]
    bar(f"Llip is 3 points of mAP above SigLIP, {shown(gains)}", mean(gains) >= 3)
    gaps = [100 * (table["Llip", "all", seed]["mAP"] - table["SigLIP", "all", seed]["mAP"]) for seed in seeds]
    bar(f"where captions name everything the gap is within 1.5 points, {shown(gaps)}", abs(mean(gaps)) <= 1.5)
    differs = [table["Llip", "one", seed]["strongest"] for seed in seeds]
    bar(f"two captions choose another token in most pictures, {shown(differs, 100)} %", mean(differs) > 0.5)


def main() -> None:
    """Run the cells that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=lambda text: [int(word) for word in text.split(",")], default="0,1,2")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--temperature", type=float, default=1.0)
    given = parser.parse_args()
    pictures = rendered(given.out / f"renders-{given.pictures}", given.pictures)
    kinds: tuple[Captions, ...] = ("one", "all")
    runs = {kind: write_run(given.out / f"{kind}-{given.pictures}", pictures, kind) for kind in kinds}
    cells, table = Cells(given.out / "cells.json"), {}
    keys = [*((arm, "one") for arm in ARMS), *((arm, "all") for arm in COMPARED)]
    for seed, (arm, kind) in itertools.product(given.seeds, keys):
        settings = f"seed-{seed}-steps-{given.steps}-pictures-{given.pictures}-temperature-{given.temperature:g}"
        name = f"{arm.replace(' ', '-')}-{kind}-{settings}"
        key: Cell = (arm, "one" if kind == "one" else "all", seed)
        work = partial(cell, runs, given.out / name, key, given.steps, given.temperature)
        table[key] = cells.measured(name, work)
    report(table, given.seeds)


if __name__ == "__main__":
    main()
