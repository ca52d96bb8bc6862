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
from typing import Any

from granary.curation.dense import fields
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import DULL, GOOD, Annotation, InvalidAnnotation, Mask, Problem
from granary.curation.errors import UserError
from granary.curation.sources import Source, files

MAX_BYTES = 4 << 30


def records(source: Source, max_bytes: int, captions: str | None = None) -> Iterator[Record]:
    """Yield the images of the files in order of their ids, each with its captions and instances as JSON.

    Raises:
        UserError: a file is not COCO's.
    """
    images: dict[int, dict[str, Any]] = {}
    stem = source.path.rsplit("/", 1)[-1]
    for path in filter(None, (source.path, captions)):
        _gather(_load(path), images, path)
    for number in sorted(images):
        found = images[number]
        yield Record(f"{stem}:{number}", text=json.dumps(found))


def _load(path: str) -> dict[str, Any]:
    try:
        return fields.load(files.read_file(path, MAX_BYTES), [])
    except (OSError, InvalidAnnotation) as error:
        raise UserError(f"annotations: {path} cannot be read ({error}); give an instance or caption file") from error


def _gather(whole: Mapping[str, Any], images: dict[int, dict[str, Any]], path: str) -> None:
    try:
        names = {entry["id"]: str(entry["name"]) for entry in whole.get("categories") or []}
        for entry in whole["images"]:
            images.setdefault(entry["id"], {"file_name": entry["file_name"], "captions": [], "instances": []})
        for entry in whole["annotations"]:
            image = images.get(entry["image_id"])
            if image is not None and "caption" in entry:
                image["captions"].append(entry["caption"])
            elif image is not None:
                image["instances"].append({**entry, "category": names.get(entry.get("category_id"), "")})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"annotations: {path} is no instance or caption file of COCO: {error!r} is missing") from error


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    captions = fields.texts(record["captions"], "captions", problems)
    listed = ((str(entry.get("id", place)), entry) for place, entry in enumerate(record["instances"]))
    return Annotation(
        file=name,
        image=fields.image_name(record, "file_name"),
        masks=fields.masks_of(listed, _mask, problems),
        short_caption=captions[0] if captions else "",
        summaries={"base": captions} if captions else {},
        problems=problems,
    )


def _mask(name: str, entry: Mapping[str, Any], problems: list[Problem]) -> Mask:
    outline = entry.get("segmentation")
    pixels = outline if isinstance(outline, Mapping) else {"polygons": outline} if outline else {}
    return Mask(
        key=name,
        label=fields.text(entry, "category", problems, name),
        quality=DULL if entry.get("iscrowd") else GOOD,
        pixels=pixels,
        box=None if pixels else _outer(entry.get("bbox")),
    )


def _outer(bbox: Any) -> tuple[int, int, int, int]:
    """Return the whole pixels that a box of x, y, width, height touches."""
    try:
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError) as error:
        raise ValueError("there is neither a segmentation nor a bbox of four numbers") from error
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError("the bbox has a number that is not finite")
    return math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
