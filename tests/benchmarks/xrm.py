"""XRM on CIFAR-10 with a tinted strip, or on renders: are the pictures found whose shortcut contradicts their class,
and does that help?

    python -m tests.benchmarks.xrm OUT [--data cifar] [--classes airplane,frog] [--seeds 2] [--steps 500] [--train 2400]
        [--strength 1.0]
    python -m tests.benchmarks.xrm OUT --data renders [--classes Cat,Penguin]

The strip, the upper four rows, is tinted red or blue; it agrees with the class in 95 % of the training pictures and in
half of those of the test. In renders of two animals, 64 px, the world takes its place: meadow or snow. The 800 of the
test show directions of the animal that none of training does. Compared are trainings without groups (ERM) and GroupDRO
by the true strips and by the environments that XRM discovered, as well as drawing groups equally often (RWG) and
cutting them to the size of the smallest (SUBG), by the accuracy of the worst of the four groups of class and strip.
With --faint the strip is so faint that the class is easier: the flip rate then says that nothing was found.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Value
from numpy.typing import NDArray
from PIL import Image

import granary
from granary.curation.store.sampling import priority
from granary.curation.store.schema import arrow_schema, sample_features
from granary.training.data.augment import normalised, to_unit
from granary.training.data.crops import Crop
from granary.training.data.passes import in_order
from granary.training.data.shards import open_dataset
from granary.training.evaluation.environments import UNSURE, write_environments
from granary.training.methods.supervised import Supervised
from granary.training.models.training import load_training
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
from tests.benchmarks.cells import Cells, bar, shown
from tests.benchmarks.pictures import cifar

SIDE, ROWS, AGREE, TESTS = 32, 4, 0.95, 800
TINTS = np.array([[230, 30, 30], [30, 30, 230]], np.float64)
WORLDS, TEXTURES = ("Meadow", "Snow"), ("Default", "Grass", "Sky")
YAWS, SCALES, CAMERAS = range(0, 360, 5), (0.8, 0.9, 1.0, 1.1, 1.2), (0, 45, 180, 315)
CLASSES = {"cifar": "airplane,frog", "renders": "Cat,Penguin"}
MODEL = {"kind": "resnet", "widths": [32, 64, 128], "depths": [1, 1, 1], "stem": "half", "img_size": SIDE}
ARMS: Mapping[str, Mapping[str, object]] = {
    "ERM": {},
    "GroupDRO, true groups": {"robust": "groupdro", "groups": "strip"},
    "GroupDRO, XRM groups": {"robust": "groupdro", "groups": "environment"},
    "RWG, XRM groups": {"robust": "rwg", "groups": "environment"},
    "SUBG, XRM groups": {"robust": "subg", "groups": "environment"},
}
Row = dict[str, object]


def tinted(file: bytes, tint: int, strength: float) -> bytes:
    """Return a picture as PNG, its strip mixed with a colour."""
    pixels = np.array(Image.open(io.BytesIO(file)).convert("RGB"), np.float64)
    pixels[:ROWS] = (1 - strength) * pixels[:ROWS] + strength * TINTS[tint]
    out = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def rows(classes: list[str], count: int, seed: int, strength: float) -> Iterator[Row]:
    """Yield so many training pictures of two classes, and those of the test."""
    left = count
    for number, (file, _, label, split) in enumerate(cifar(18_000)):
        if label not in classes or (split == "train" and not left):
            continue
        left -= split == "train"
        chance = float(priority(seed, [number], "strip")[0]) / 2.0**64
        agrees = chance < (AGREE if split == "train" else 0.5)
        strip = classes.index(label) if agrees else 1 - classes.index(label)
        data, name = tinted(file, strip, strength), f"{number:05d}"
        yield {
            "id": name, "image": {"bytes": data, "path": f"{name}.png"}, "width": 32, "height": 32, "label": label,
            "captions": [], "source": {"name": "cifar", "uri": name}, "split": split, "strip": str(strip),
        }  # fmt: skip


def plan(classes: Sequence[str], count: int, seed: int) -> list[dict[str, str | float]]:
    """Return the factors of so many training renders of two animals and of `TESTS`, no two of them alike.

    Args:
        classes: the animals.
        count: of training.
        seed: of the draw.
    """
    rng, found = np.random.default_rng(seed), list[dict[str, str | float]]()
    for size, agree, yaws in ((count, AGREE, YAWS[::2]), (TESTS, 0.5, YAWS[1::2])):
        values = [*itertools.product(TEXTURES, yaws, SCALES, CAMERAS)]
        looks = {pair: iter(rng.permutation(len(values)).tolist()) for pair in itertools.product((0, 1), (0, 1))}
        for number in range(size):
            animal = number % 2
            world = animal if rng.random() < agree else 1 - animal
            texture, yaw, scale, camera = values[next(looks[animal, world])]
            found.append(
                {
                    "world_name": WORLDS[world], "character_name": classes[animal], "character_texture": texture,
                    "character_rotation_yaw": yaw, "character_scale": scale, "camera_yaw": camera,
                }
            )  # fmt: skip
    return found


def rendered(folder: Path, classes: Sequence[str], count: int, seed: int) -> Path:
    """Render the pictures, unless they are there; returns the folder."""
    rows = plan(classes, count, seed)
    factors = {name: list(dict.fromkeys(row[name] for row in rows)) for name in rows[0]}
    size = {"width": 2 * SIDE, "height": 2 * SIDE}
    granary.render(out=folder, factors=factors, plan={"kind": "list", "rows": rows}, image=size, checks={"twice": 0})
    return folder


def render_rows(pictures: Path) -> Iterator[Row]:
    """Yield renders with the world as their strip; the direction of the animal says of which split they are."""
    columns = ["id", "image", "world_name", "character_name", "character_rotation_yaw"]
    for file in sorted((pictures / "dataset" / "data").glob("*.parquet")):
        for row in pq.read_table(file, columns=columns).to_pylist():
            yaw = round(float(row["character_rotation_yaw"]))
            yield {
                "id": row["id"], "image": row["image"], "width": 2 * SIDE, "height": 2 * SIDE, "captions": [],
                "label": row["character_name"], "source": {"name": "renders", "uri": row["id"]},
                "split": "train" if yaw in YAWS[::2] else "test", "strip": str(WORLDS.index(row["world_name"])),
            }  # fmt: skip


def write_run(folder: Path, made: Callable[[], Iterator[Row]]) -> str:
    """Write pictures as shards, unless they are there; returns the folder."""
    target = folder / "dataset" / "data" / "shard-00000-of-00001.parquet"
    if not target.exists():
        schema = arrow_schema(sample_features({"split": Value("string"), "strip": Value("string")}))
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(list(made()), schema), part, row_group_size=100)
        part.rename(target)
    return str(folder)


def trained(method: str, options: Mapping[str, object], run: str, out: Path, seed: int, steps: int) -> str:
    """Train a thin ResNet; returns the folder."""
    tree = {
        "method": method, "options": options, "model": MODEL, "data": run, "split": "train", "out": str(out),
        "seed": seed, "steps": steps, "batch": 128, "workers": 0, "device": {"threads": 1}, "alarm": {"every": 0},
        "optimiser": {"kind": "sgd", "lr": 0.02, "momentum": 0.9, "warmup": 20, "weight_decay": 1e-4},
        "logs": {"tensorboard": False}, "checkpoints": {"every": steps},
    }  # fmt: skip
    train(TrainRecipe.model_validate(tree))
    return str(out)


def worst_group(model: str, run: str) -> float:
    """Return the accuracy of the worst group of class and strip on the test pictures, in percent."""
    method = load_training(model)
    assert isinstance(method, Supervised)
    right: dict[tuple[int, str], list[bool]] = {}
    crop = Crop(1, method.config.img_size, centre=True)
    for part in in_order(open_dataset(run, split="test"), crop, ["image", "label", "strip"], method.classes, 256):
        with torch.no_grad():
            pixels = normalised(to_unit(part["image"][:, 0]), method.config.mean, method.config.std)
            answers = method.head(method.encoder(pixels).cls).argmax(dim=1)
        for label, strip, answer in zip(part["label"].tolist(), part["strip"], answers.tolist(), strict=True):
            right.setdefault((label, str(strip)), []).append(answer == label)
    return 100 * min(float(np.mean(answers)) for answers in right.values())


def found(run: str, environments: Mapping[str, str], classes: list[str]) -> dict[str, float]:
    """Return recall and precision of environment 1 for the training pictures whose strip contradicts the class."""
    table = pq.read_table(next((Path(run) / "dataset" / "data").glob("*.parquet")))
    train_rows = [row for row in table.select(["id", "label", "strip", "split"]).to_pylist() if row["split"] == "train"]
    against: NDArray[np.bool_] = np.array([classes.index(row["label"]) != int(row["strip"]) for row in train_rows])
    said: NDArray[np.bool_] = np.array([environments[row["id"]] == "1" for row in train_rows])
    both = float((against & said).sum())
    return {"recall": both / max(1, against.sum()), "precision": both / max(1, said.sum())}


def seed_measured(folder: Path, run: str, classes: list[str], seed: int, steps: int) -> dict[str, float]:
    """Return what is measured with one seed."""
    twins = trained("xrm", {"frozen": False}, run, folder / "xrm", seed, steps)
    shutil.rmtree(folder / "environments", ignore_errors=True)  # of a measurement that was stopped
    best = write_environments([twins], run, str(folder / "environments"))
    numbers = {"flip rate": best.flip_rate, **found(run, best.environments, classes)}
    for arm, options in ARMS.items():
        out = folder / arm.replace(" ", "-").replace(",", "")
        crop = {"crop_scale": [0.99, 1.0], "group_step": 0.1}
        model = trained("supervised", {**crop, **options}, str(folder / "environments"), out, seed, steps)
        numbers[arm] = worst_group(model, run)
    return numbers


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", choices=CLASSES, default="cifar")
    parser.add_argument("--classes", help="two, of the data")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--train", type=int, default=2400)
    parser.add_argument("--strength", type=float, default=1.0, help="of the tint")
    parser.add_argument("--faint", action="store_true")
    given = parser.parse_args()
    if given.faint and given.data == "renders":
        parser.error("--faint is of the tint: leave out --data renders")
    if given.train > 4000 and given.data == "renders":
        parser.error("--train is 4,000 at most: there are no more different renders")
    names, strength = given.classes or CLASSES[given.data], 0.02 if given.faint else given.strength
    classes, cells = names.split(","), Cells(given.out / "cells.json")
    settings = f"{names} {given.steps} {given.train} {strength}"

    def work(seed: int) -> dict[str, float]:
        folder = given.out / f"{settings} {seed}".replace(" ", "-")
        if given.data == "renders":
            run = write_run(
                folder / "run", lambda: render_rows(rendered(folder / "renders", classes, given.train, seed))
            )
        else:
            run = write_run(folder / "run", lambda: rows(classes, given.train, seed, strength))
        return seed_measured(folder, run, classes, seed, given.steps)

    measured = [cells.measured(f"{settings} {seed}", partial(work, seed)) for seed in range(given.seeds)]
    mean = {name: float(np.mean([numbers[name] for numbers in measured])) for name in measured[0]}
    for name in mean:
        print(f"{name:24} {shown(numbers[name] for numbers in measured)}")
    if given.faint:
        bar("a shortcut that is harder than the class is recognised by its flip rate", mean["flip rate"] < UNSURE)
        return
    bar("recall 0.9 and precision 0.8 of the contradicting group", mean["recall"] >= 0.9 and mean["precision"] >= 0.8)
    bar("GroupDRO by XRM is within 2 points of true groups", mean[list(ARMS)[2]] >= mean[list(ARMS)[1]] - 2)
    bar("and 15 above ERM", mean[list(ARMS)[2]] >= mean["ERM"] + 15)


if __name__ == "__main__":
    main()
