"""COCO: an instance file, a caption file, or both.

`annotations` is the instance file (images, annotations with a segmentation as polygons or run lengths, categories) or
the caption file; `captions` is the caption file beside an instance file. A file is read whole, so memory grows with it
while the records are listed; the images are packed after that, a unit at a time. An image's captions are alternate
summaries of it, its instances are masks without a tree, labelled with their category; a crowd is a dull one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TypedDict, cast

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import (
    DULL,
    GOOD,
    Annotation,
    Box,
    InvalidAnnotation,
    Mask,
    Polygons,
    Problem,
    RunLengths,
)
from granary.curation.errors import UserError
from granary.curation.sources import Source, files

MAX_BYTES = 4 << 30


class Category(TypedDict):
    """What an instance is of."""

    id: int
    name: str


class ListedImage(TypedDict):
    """A picture."""

    id: int
    file_name: str


class ListedAnnotation(TypedDict, total=False):
    """An instance in an image, or a caption of it; of an instance whatever else is there is kept."""

    image_id: int
    category_id: int
    caption: str


class CocoFile(TypedDict, total=False):
    """What an instance or caption file holds when it is right; of which nobody has made sure."""

    images: list[ListedImage]
    annotations: list[ListedAnnotation]
    categories: list[Category]


class CocoRecord(TypedDict):
    """An image with its captions and instances: the JSON of one record."""

    file_name: str
    captions: list[str]
    instances: list[JsonObject]


def records(source: Source, max_bytes: int, captions: str = "") -> Iterator[Record]:
    """Yield the images of the files in order of their ids, each with its captions and instances as JSON.

    Args:
        source: the instance or the caption file.
        max_bytes: not used: the files are read whole.
        captions: path of the caption file that goes with an instance file; "" for none.

    Raises:
        UserError: a file is not COCO's.
    """
    images: dict[int, CocoRecord] = {}
    stem = source.path.rsplit("/", 1)[-1]
    for path in filter(None, (source.path, captions)):
        _gather(_load(path), images, path)
    for number in sorted(images):
        yield Record(f"{stem}:{number}", text=json.dumps(images[number]))


def _load(path: str) -> CocoFile:
    try:
        return cast(CocoFile, fields.load(files.read_file(path, MAX_BYTES), []))
    except (OSError, InvalidAnnotation) as error:
        raise UserError(f"annotations: {path} cannot be read ({error}); give an instance or caption file") from error


def _gather(whole: CocoFile, images: dict[int, CocoRecord], path: str) -> None:
    """Add the images of a file, and what it says of these and of those that are there already."""
    try:
        categories = whole.get("categories") or []
        names: dict[int | None, str] = {category["id"]: str(category["name"]) for category in categories}
        for image in whole["images"]:
            images.setdefault(image["id"], {"file_name": image["file_name"], "captions": [], "instances": []})
        for annotation in whole["annotations"]:
            record = images.get(annotation["image_id"])
            if record is not None and "caption" in annotation:
                record["captions"].append(annotation["caption"])
            elif record is not None:
                category = names.get(annotation.get("category_id"), "")
                record["instances"].append({**annotation, "category": category})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"annotations: {path} is no instance or caption file of COCO: {error!r} is missing") from error


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    captions = fields.texts(record["captions"], "captions", problems)
    instances = cast(CocoRecord, record)["instances"]
    listed = ((str(entry.get("id", place)), entry) for place, entry in enumerate(instances))
    return Annotation(
        file=name,
        image=fields.image_name(record, "file_name"),
        masks=fields.masks_of(listed, _mask, problems),
        short_caption=captions[0] if captions else "",
        summaries={"base": captions} if captions else {},
        problems=problems,
    )


def _mask(name: str, entry: JsonObject, problems: list[Problem]) -> Mask:
    pixels = _pixels(entry.get("segmentation"))
    return Mask(
        key=name,
        label=fields.text(entry, "category", problems, name),
        quality=DULL if entry.get("iscrowd") else GOOD,
        pixels=pixels,
        box=_outer(entry.get("bbox")) if pixels is None else None,
    )


def _pixels(outline: object) -> RunLengths | Polygons | None:
    """Return the pixels of a segmentation; None where there is none."""
    if not outline:
        return None
    return RunLengths(outline) if isinstance(outline, Mapping) else Polygons(outline)


def _outer(bbox: object) -> Box:
    """Return the whole pixels that a box of x, y, width, height touches."""
    try:
        if not isinstance(bbox, list):
            raise TypeError
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError) as error:
        raise ValueError("there is neither a segmentation nor a bbox of four numbers") from error
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError("the bbox has a number that is not finite")
    return math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
