"""Small datasets in granary's sample schema, written without the pipelines."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from places import SHARED

from granary.curation.store.schema import arrow_schema, sample_features

CIFAR = SHARED / "cifar10_dev.npz"


def sample(data: bytes, size: tuple[int, int], **columns: Any) -> dict[str, Any]:
    """Return one row of the schema."""
    identity = hashlib.sha256(data).hexdigest()[:32]
    row = {"id": identity, "image": {"bytes": data, "path": f"{identity}.jpg"}, "width": size[0], "height": size[1]}
    row |= {"label": None, "captions": [], "source": {"name": "tests", "uri": f"tests/{identity}.jpg"}}
    return row | columns


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def shape(number: int, side: int = 32) -> tuple[Image.Image, str]:
    """Return a circle, square, triangle or cross of random colour, place and size on a random ground, and its name."""
    rng = np.random.default_rng(number)
    name = ("circle", "square", "triangle", "cross")[number % 4]
    ground, colour = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    image = Image.new("RGB", (side, side), ground)
    radius = int(rng.integers(side // 5, side // 3))
    x, y = (int(v) for v in rng.integers(radius, side - radius, 2))
    box = (x - radius, y - radius, x + radius, y + radius)
    draw = ImageDraw.Draw(image)
    if name == "circle":
        draw.ellipse(box, fill=colour)
    elif name == "square":
        draw.rectangle(box, fill=colour)
    elif name == "triangle":
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    else:
        draw.rectangle((x - radius, y - radius // 3, x + radius, y + radius // 3), fill=colour)
        draw.rectangle((x - radius // 3, y - radius, x + radius // 3, y + radius), fill=colour)
    return image, name


def shapes(count: int, side: int = 32, first: int = 0) -> list[dict[str, Any]]:
    """Return labelled rows of shapes."""
    drawn = [shape(number, side) for number in range(first, first + count)]
    return [sample(encoded(image, "PNG"), image.size, label=name, captions=[f"a {name}"]) for image, name in drawn]


def write_shards(
    folder: Path, rows: Sequence[Mapping[str, Any]], shards: int = 2, group: int = 10, extra: Mapping[str, Any] = {}
) -> Path:
    """Write rows as a run directory with shards in dataset/data; extra: features of further columns."""
    schema = arrow_schema(sample_features(dict(extra)))
    target = folder / "dataset" / "data"
    target.mkdir(parents=True)
    for number in range(shards):
        own = list(rows[number * len(rows) // shards : (number + 1) * len(rows) // shards])
        name = f"train-{number:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(own, schema), target / name, row_group_size=group)
    return folder


def cifar(count: int = 20_000) -> list[dict[str, Any]]:
    """Return rows of CIFAR-10 in the order of the file; the 2,000 pictures of every tenth row are split test."""
    found = np.load(CIFAR)
    names, jpeg, offset, label = [str(n) for n in found["class_names"]], found["jpeg"], found["offset"], found["label"]
    return [
        sample(
            jpeg[offset[i] : offset[i + 1]].tobytes(),
            (32, 32),
            label=names[label[i]],
            split="test" if i % 10 == 0 else "train",
        )
        for i in range(count)
    ]
