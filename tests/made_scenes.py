"""Runs of small scenes as granary render writes them: shapes of some colours with mask, boxes, questions, captions."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Image as ImageFeature
from datasets import List, Value
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from granary.curation.store.language import poll_feature, question_feature
from granary.curation.store.schema import arrow_schema, sample_features

COLOURS = {"Red": (230, 40, 40), "Green": (40, 200, 60), "Blue": (50, 60, 230)}
NAMES = ("Ball", "Slab", "Cone")
SIDE = 32


def drawn(name: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (height, width) of a shape in a box, right and bottom exclusive."""
    canvas = Image.new("1", size)
    left, top, right, bottom = box
    pen = ImageDraw.Draw(canvas)
    if name == "Ball":
        pen.ellipse((left, top, right - 1, bottom - 1), fill=1)
    elif name == "Slab":
        pen.rectangle((left, top, right - 1, bottom - 1), fill=1)
    else:
        pen.polygon([((left + right - 1) // 2, top), (left, bottom - 1), (right - 1, bottom - 1)], fill=1)
    return np.array(canvas, bool)


def png(pixels: NDArray[Any]) -> bytes:
    """Return pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def scene(number: int, size: tuple[int, int] = (SIDE, SIDE)) -> dict[str, Any]:
    """Return a row with one or two things, one in each half."""
    random = np.random.default_rng(number)
    pixels = np.full((size[1], size[0], 3), random.integers(90, 140, 3), np.uint8)
    mask, objects, textures, half = np.zeros(size[::-1], np.uint8), [], ["Default", "Default"], size[0] // 2
    for slot in range(1 + int(random.integers(2))):
        name, texture = NAMES[random.integers(3)], list(COLOURS)[random.integers(3)]
        wide, tall = (int(random.integers(9, 14)) for _ in range(2))
        left, top = slot * half + int(random.integers(0, half - wide)), int(random.integers(0, size[1] - tall))
        shape = drawn(name, (left, top, left + wide, top + tall), size)
        pixels[shape], mask[shape], textures[slot] = COLOURS[texture], slot + 1, texture
        rows, columns = np.nonzero(shape)
        box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
        objects.append({"name": name, "box": box, "pixels": int(shape.sum())})
    data = png(pixels)
    asked = {"id": "0", "kind": "count", "question": "How many things are there?", "answer": str(len(objects))}
    poll = {"kind": "random", "object": "ball", "question": "Is there a ball?"}
    return {
        "id": hashlib.sha256(data).hexdigest()[:32],
        "image": {"bytes": data, "path": f"{number:09d}.png"},
        "width": size[0],
        "height": size[1],
        "label": objects[0]["name"],
        "captions": [f"a {' and a '.join(one['name'].lower() for one in objects)}"],
        "source": {"name": "render", "uri": str(number)},
        "split": "test" if number % 4 == 3 else "train",
        "character_texture": textures[0],
        "character2_texture": textures[1],
        "objects": objects,
        "questions": [{**asked, "answers": [asked["answer"]]}],
        "polls": [{**poll, "answer": "yes" if any(one["name"] == "Ball" for one in objects) else "no"}],
        "mask": {"bytes": png(mask), "path": f"{number:09d}-mask.png"},
    }


def write_scenes(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as the shards of a render, one for each split; returns the folder."""
    string, count = Value("string"), Value("int32")
    features = sample_features(
        {
            "split": string, "character_texture": string, "character2_texture": string,
            "objects": List({"name": string, "box": List(count), "pixels": count}),
            "questions": question_feature(), "polls": poll_feature(), "mask": ImageFeature(),
        }
    )  # fmt: skip
    target = folder / "dataset" / "data"
    target.mkdir(parents=True)
    for split in dict.fromkeys(row["split"] for row in rows):
        table = pa.Table.from_pylist([row for row in rows if row["split"] == split], arrow_schema(features))
        pq.write_table(table, target / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return str(folder)
