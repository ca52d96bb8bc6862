"""What a row of a run shows: the things in its picture with their names, attributes, boxes and masks."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.curation.dense import rle
from granary.curation.dense.masks import pixels_of
from granary.curation.dense.tree import GOOD, Problem
from granary.curation.instructions.schema import ThingRow

SLOTS, PARTS = "objects", "masks"  # columns of granary render and of granary pack
NOTHING = frozenset({"", "Default", "blank"})  # textures that are none
APART = 0.1  # of the width: a thing nearer to the middle is neither left nor right
LARGE, SMALL = 1 / 9, 1 / 25  # shares of the picture that a box has at least, at most


def words_of(name: object) -> str:
    """Return a name as words: `PolarBear` and `polar_bear` are polar bear."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", str(name or "")).lower().split())


def things_of(
    row: Mapping[str, Any], size: tuple[int, int], textures: Sequence[str]
) -> tuple[list[ThingRow], list[Problem]]:
    """Return the things of a row, and why others are lost.

    Args:
        row: with a column `objects` and perhaps `mask`, or with `masks`.
        size: width and height of its picture.
        textures: columns with the texture of the first thing of a mask, of the second, and so on.
    """
    if row.get(SLOTS):
        return _of_slots(row, size, textures)
    things, problems = list[ThingRow](), list[Problem]()
    for place, mask in enumerate(row.get(PARTS) or ()):
        key = str(mask.get("key") or place)
        if mask.get("quality", GOOD) != GOOD or not words_of(mask.get("label")):
            continue  # a crowd, or nothing that has a name
        try:
            pixels = pixels_of(mask.get("size") or size[::-1], mask.get("counts"), mask.get("png"))
            things.append(_thing(mask["label"], mask.get("box"), pixels, size))
        except (ValueError, OSError, KeyError, TypeError, IndexError) as error:
            problems.append(Problem(key, "InvalidMask", _said(error)))
    return things, problems


def _of_slots(
    row: Mapping[str, Any], size: tuple[int, int], textures: Sequence[str]
) -> tuple[list[ThingRow], list[Problem]]:
    """Return the things of a render: those of the mask in rising order are those of `objects`."""
    try:
        mask = _indices(row.get("mask"), size)
        present = [] if mask is None else [int(index) for index in np.unique(mask[mask > 0])]
        if mask is not None and len(present) != len(row[SLOTS]):
            raise ValueError(f"the mask has {len(present)} things, the column {SLOTS} {len(row[SLOTS])}")
    except (ValueError, OSError, SyntaxError) as error:
        return [], [Problem("mask", "InvalidMask", _said(error))]
    things, problems = list[ThingRow](), list[Problem]()
    for place, told in enumerate(row[SLOTS]):
        try:
            index = present[place] if present else 0
            pixels = None if mask is None else mask == index
            texture = row.get(textures[index - 1]) if 0 < index <= len(textures) else ""
            things.append(_thing(told.get("name"), told.get("box"), pixels, size, str(texture or "")))
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(Problem(f"{SLOTS}/{place}", "InvalidBox", str(error)))
    return things, problems


def _said(error: Exception) -> str:
    """Return what an error says, the same in every process: Pillow names the place of the file in memory."""
    unknown = isinstance(error, Image.UnidentifiedImageError)
    return "the mask is no PNG" if unknown else str(error) or type(error).__name__


def _indices(cell: object, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Return the indices (h, w) of a mask that is a picture; None where there is none. Raises ValueError or OSError."""
    data = cell.get("bytes") if isinstance(cell, Mapping) else None
    if not isinstance(data, bytes):
        return None
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.size != size or image.mode not in ("L", "P", "1"):
            raise ValueError(f"the mask is {image.mode} of {image.size}, not indices of {size[0]} x {size[1]} pixels")
        return np.asarray(image).astype(np.uint8)


def _thing(
    name: object, box: object, pixels: NDArray[np.bool_] | None, size: tuple[int, int], texture: str = ""
) -> ThingRow:
    """Return a thing, whose box is that of its pixels where it has any; raises ValueError where it has no place."""
    width, height = size
    counts = None
    if pixels is not None:
        if pixels.shape != (height, width):
            raise ValueError(f"the mask is {pixels.shape[1]} x {pixels.shape[0]}, the picture {width} x {height}")
        lengths = rle.run_lengths(pixels)
        bounds = rle.bounds(lengths, height)
        if bounds is None:
            raise ValueError("the mask is empty")
        box, counts = list(bounds), rle.compress(lengths)
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, int) for x in box):
        raise ValueError(f"the box is {box}, not four whole numbers")
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"the box {box} is not inside a picture of {width} x {height}")
    across, share = (left + right) / 2 / width - 0.5, (right - left) * (bottom - top) / (width * height)
    return ThingRow(
        name=words_of(name),
        texture="" if texture in NOTHING else words_of(texture),
        position="" if abs(across) < APART else "left" if across < 0 else "right",
        size="large" if share >= LARGE else "small" if share <= SMALL else "",
        box=box,
        counts=counts,
    )
