"""`granary environments`: write a dataset again with the environment of every picture, as trainings of XRM tell it.

Environment 1 are the pictures that either network of the twins classifies wrongly: those that contradict the shortcut.
Of several trainings that with the largest flip rate decides, without those that leave a class in one environment.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import torch

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.crops import Crop
from granary.training.data.frozen import Output, encoded
from granary.training.data.passes import in_order
from granary.training.data.rewritten import check_new, write_again
from granary.training.losses.cross_risk import cross_mistakes
from granary.training.methods.xrm import XRM
from granary.training.models.checkpoint import STATE, checkpoint_folder
from granary.training.models.training import load_training

COLUMN = "environment"
UNSURE = 0.01  # a flip rate below it says that the networks agree with nearly all labels
BATCH = 256
Environments = dict[str, str]  # id -> "0" or "1"


class Discovery(NamedTuple):
    """What a training says of a dataset.

    Args:
        model: its path.
        flip_rate: share of its labels that were flipped at its end.
        environments: of every picture with a label that can be decoded.
        counts: (split, class, environment) -> pictures.
        degenerate: a class of a split to learn or to choose by that is in one environment alone, in words; "" for none.
    """

    model: str
    flip_rate: float
    environments: Environments
    counts: Mapping[tuple[str, str, str], int]
    degenerate: str


def write_environments(
    models: Sequence[str], data: str, out: str, say: Callable[[str], object] = print, device: str = "cpu"
) -> Discovery:
    """Write a dataset again, with a column `environment` of "0" and "1", null for pictures without a label.

    Args:
        models: trainings of XRM, of the same data with other numbers.
        data: a run, its dataset or a folder of shards; every split of it.
        out: the run directory to write, which must be new: dataset/data/*.parquet and environments.json.
        say: prints a line.
        device: that computes.

    Returns:
        What the chosen training says.

    Raises:
        UserError: a model is no training of XRM, `out` is there, or every training is degenerate.
    """
    dataset = shards.open_dataset(data, ("image", "label"), why="environments", categories=("label",))
    check_new(out, dataset, COLUMN)
    found = [discover(model, dataset, device) for model in models]
    for one in found:
        say(
            f"{one.model}: flip rate {one.flip_rate:.4f}"
            + (f"; degenerate: {one.degenerate}" if one.degenerate else "")
        )
    best = chosen(found)
    if best.flip_rate < UNSURE:
        say(
            f"the networks contradict {best.flip_rate:.2%} of the labels: the training was too short, or the data have "
            "no shortcut that is easier than the class; environment 1 are then mistakes of another kind, and balancing "
            "it gains nothing"
        )

    def column(group: shards.RowGroup) -> pa.Array:
        ids = shards.read_group(group, ["id"])["id"].to_pylist()
        return pa.array([best.environments.get(name) for name in ids], pa.string())

    write_again(dataset, out, COLUMN, column)
    storage.write_bytes(storage.join(out, "environments.json"), json.dumps(_facts(best, data), indent=2).encode())
    for (split, label, environment), count in sorted(best.counts.items()):
        say(f"{split}, {label}, environment {environment}: {count:,} pictures")
    return best


def chosen(found: Sequence[Discovery]) -> Discovery:
    """Return the one with the largest flip rate of those that are not degenerate. Raises UserError for none."""
    sound = [one for one in found if not one.degenerate]
    if not sound:
        raise UserError(
            f"model: {found[0].degenerate}, so that there are no groups to balance; train longer, with another "
            "optimiser.lr or another seed"
        )
    return max(sound, key=lambda one: one.flip_rate)


@torch.no_grad()
def discover(model: str, dataset: shards.Dataset, device: str = "cpu") -> Discovery:
    """Return what a training says of a dataset: each picture is seen once, in order, by both networks."""
    method = load_training(model, device)
    if not isinstance(method, XRM):
        raise UserError(f"model: {model} is not right: it is no training of method xrm")
    crop, output = Crop(1, method.config.img_size, centre=True), _output(model)
    columns = ["image", "label", *(["split"] if "split" in dataset.columns else [])]
    environments, counts = Environments(), Counter[tuple[str, str, str]]()
    for part in in_order(dataset, crop, columns, method.classes, BATCH):
        labels = part.get("label")
        if labels is None or not len(labels):
            continue
        networks = [method.encoder] if method.options.frozen else [method.encoder, method.twin]
        vectors = [encoded(network, part["image"], output).to(device) for network in networks]  # type: ignore[arg-type]
        first, second = (head(vectors[min(n, len(vectors) - 1)]) for n, head in enumerate(method.heads))
        mistakes = cross_mistakes(first, second, labels.to(device)).tolist()
        for row, (name, label) in enumerate(zip(part["id"], labels.tolist(), strict=True)):
            if label >= 0:
                environments[name] = str(mistakes[row])
                split = part["split"][row] if "split" in part else "train"
                counts[str(split), method.classes[label], str(mistakes[row])] += 1
    return Discovery(model, float(method.flip_rate()), environments, counts, degeneracy(counts))


def degeneracy(counts: Mapping[tuple[str, str, str], int]) -> str:
    """Return a class that is in one environment alone, in words, "" for none; the split test decides nothing."""
    for split, label in sorted({(split, label) for split, label, _ in counts if split != "test"}):
        empty = [number for number in ("0", "1") if not counts.get((split, label, number))]
        if empty:
            return f"no picture of class {label} in split {split} is in environment {empty[0]}"
    return ""


def _output(model: str) -> Output:
    """Return which vector of a frozen model a training read."""
    folder = checkpoint_folder(model)
    state = json.loads(storage.read_bytes(storage.join(folder, STATE))) if folder else {}
    output: Output = state.get("recipe", {}).get("features", {}).get("output", "cls")
    return output


def _facts(best: Discovery, data: str) -> dict[str, object]:
    counts = [[*key, count] for key, count in sorted(best.counts.items())]
    return {"kind": "environments", "model": best.model, "data": data, "flip_rate": best.flip_rate, "counts": counts}
