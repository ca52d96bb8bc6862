"""A small run of `granary partition`: shapes with their boxes, in parts."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from datasets import List, Value
from PIL import Image
from tiny_shards import shapes, write_shards

from granary.training.evaluation.partition import write_partition
from granary.training.evaluation.partition_recipe import PartitionRecipe

FEATURES = {"boxes": List(List(Value("float32"))), "place": Value("string")}


def box_of(image: Image.Image) -> list[float]:
    """Return the box of what is not the ground of a shape."""
    pixels = np.asarray(image)
    ys, xs = np.nonzero((pixels != pixels[0, 0]).any(axis=2))
    return [float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)]


def parted_run(folder: Path, count: int, per_class: int) -> str:
    """Write it; every seventh box covers the whole picture, every third picture is of place b."""
    rows = []
    for number, row in enumerate(shapes(count, 24)):
        box = box_of(Image.open(io.BytesIO(row["image"]["bytes"])))
        rows.append({**row, "boxes": [[0, 0, 24, 24] if number % 7 == 0 else box], "place": "ab"[number % 3 == 0]})
    write_shards(folder / "run", rows, extra=FEATURES)
    given = {"data": str(folder / "run"), "out": str(folder / "out"), "per_class": per_class, "threshold": 0.99}
    write_partition(PartitionRecipe.model_validate(given), lambda _: None)
    return str(folder / "out")
