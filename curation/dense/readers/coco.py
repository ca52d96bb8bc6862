"""COCO: an instance file, a caption file, or both.

`annotations` is the instance file (images, annotations with a segmentation as polygons or run lengths, categories) or
the caption file; `captions` is the caption file beside an instance file. A file is read whole, so memory grows with it
while the records are listed; the images are packed after that, a unit at a time. An image's captions are alternate
summaries of it, its instances are masks without a tree, labelled with their category; a crowd is a dull one. Of LVIS,
which has no file names, the last parts of `coco_url` name the picture. Keys of images and annotations that neither
COCO nor LVIS has are counted and named.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypedDict, cast

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import gathered
from granary.curation.dense.readers.record import Record
from granary.curation.dense.texts import cleaned
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
MAX_DIGITS = 20  # longer ones are texts
IMAGE = frozenset(
    {
        *("id", "file_name", "coco_url", "flickr_url", "width", "height", "license", "date_captured"),
        *("neg_category_ids", "not_exhaustive_category_ids"),  # of LVIS
    }
)
CAPTION = frozenset({"id", "image_id", "caption"})
INSTANCE = frozenset({"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"})

Key = int | str


class CocoRecord(TypedDict):
    """An image with its captions and instances: the JSON of one record.

    Args:
        file_name: those it may have.
        unknown: keys of the image that no file of COCO has.
        captions, instances: its annotations, those with the name of their `category`.
    """

    file_name: list[str]
    unknown: list[str]
    captions: list[JsonObject]
    instances: list[JsonObject]


@dataclass(frozen=True)
class Gathered:
    """What the files say of an image.

    Args:
        names: that its picture may have.
        unknown: its keys that no file of COCO has.
        captions, instances: its annotations, in file order.
    """

    names: list[str]
    unknown: list[str]
    captions: list[JsonObject] = field(default_factory=list)
    instances: list[JsonObject] = field(default_factory=list)


@dataclass
class Gathering:
    """What was read of the files so far.

    Args:
        images: by id.
        strays: how many annotations name an image that no file lists, by its id.
        nameless: how many annotations name no image.
        lost: name, kind and message of what cannot be an image.
    """

    images: dict[Key, Gathered] = field(default_factory=dict)
    strays: Counter[Key] = field(default_factory=Counter)
    nameless: int = 0
    lost: list[tuple[str, str, str]] = field(default_factory=list)


def records(source: Source, max_bytes: int, captions: str = "") -> Iterator[Record]:
    """Yield the images of the files in order of their ids, each with its captions and instances as JSON.

    What cannot be read follows: images without an id or a name, and annotations of images that no file lists.

    Args:
        source: the instance or the caption file.
        max_bytes: not used: the files are read whole.
        captions: path of the caption file that goes with an instance file; "" for none.

    Raises:
        UserError: a file is not COCO's.
    """
    gathering = Gathering()
    paths = [path for path in (source.path, captions) if path]
    files_read = [_load(path) for path in paths]
    for whole, path in zip(files_read, paths, strict=True):
        _add_images(_listed(whole, "images", path), gathering)
    for whole, path in zip(files_read, paths, strict=True):
        _add_annotations(whole, path, gathering)
    stem = source.path.rsplit("/", 1)[-1]
    for number, image in sorted(gathering.images.items(), key=lambda entry: _order(entry[0])):
        content = CocoRecord(
            file_name=image.names, unknown=image.unknown, captions=image.captions, instances=image.instances
        )
        yield Record(f"{stem}:{number}", text=json.dumps(content))
    yield from _unreadable(stem, gathering)


def _unreadable(stem: str, gathering: Gathering) -> Iterator[Record]:
    """Yield a record with its reason for all that belongs to no image."""
    for name, kind, message in gathering.lost:
        yield Record(f"{stem}:{name}", error=(kind, message))
    if gathering.nameless:
        yield Record(f"{stem}:annotations", error=("NoImage", f"{gathering.nameless} annotations have no image_id"))
    for number, count in sorted(gathering.strays.items(), key=lambda entry: _order(entry[0])):
        message = f"{count} annotations are of image_id {number}, which is not among the images"
        yield Record(f"{stem}:{number}", error=("NoImage", message))


def _order(number: Key) -> tuple[bool, Key]:
    """Return what ids are sorted by: numbers before texts."""
    return isinstance(number, str), number


def _key(value: object) -> Key | None:
    """Return an id, which is one whether it is written as a number or as a text; None where it is neither."""
    if isinstance(value, str) and cleaned(value):
        return int(value) if value.isdecimal() and len(value) < MAX_DIGITS else cleaned(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _load(path: str) -> JsonObject:
    try:
        return fields.load(files.read_file(path, MAX_BYTES), [])
    except (OSError, InvalidAnnotation) as error:
        raise UserError(f"annotations: {path} cannot be read ({error}); give an instance or caption file") from error


def _listed(whole: JsonObject, name: str, path: str) -> list[JsonObject]:
    otherwise = f"annotations: {path} is no instance or caption file of COCO: {name!r} is no list in it"
    return gathered.listed(whole, name, otherwise)


def _add_images(entries: Iterable[JsonObject], gathering: Gathering) -> None:
    """Add the images of a file; of two with one id the first counts."""
    for place, entry in enumerate(entries):
        number, names = _key(entry.get("id")), _names(entry)
        before = None if number is None else gathering.images.get(number)
        if number is None or not names:
            gathering.lost.append(
                (f"images/{place}", "NoImageName", "the image has no id, or no file_name or coco_url")
            )
        elif before is None:
            gathering.images[number] = Gathered(names, sorted(entry.keys() - IMAGE))
        elif before.names[0] != names[0]:
            message = f"image id {number} is also that of {before.names[0]}; the first was kept"
            gathering.lost.append((f"images/{place}", "DuplicateKey", message))


def _names(image: JsonObject) -> list[str]:
    """Return the names that a picture may have: its file name, or of LVIS the last parts of its address."""
    name, address = image.get("file_name"), image.get("coco_url")
    names = [name] if isinstance(name, str) and name else []
    if isinstance(address, str) and "://" in address:
        parts = address.rsplit("/", 2)
        names += [parts[-1], "/".join(parts[-2:])]
    return list(dict.fromkeys(filter(None, names)))


def _add_annotations(whole: JsonObject, path: str, gathering: Gathering) -> None:
    """Add the captions and instances of a file to their images, and count those of no image."""
    categories = _listed(whole, "categories", path) if whole.get("categories") else []
    labels = {_key(category.get("id")): str(category.get("name", "")) for category in categories if "id" in category}
    for entry in _listed(whole, "annotations", path):
        number = _key(entry.get("image_id"))
        image = None if number is None else gathering.images.get(number)
        if number is None:
            gathering.nameless += 1
        elif image is None:
            gathering.strays[number] += 1
        elif "caption" in entry:
            image.captions.append(entry)
        else:
            image.instances.append({**entry, "category": _label(entry, labels)})


def _label(instance: JsonObject, labels: Mapping[Key | None, str]) -> str:
    """Return the name of the category of an instance; "" where it has none."""
    number = _key(instance.get("category_id"))
    return "" if number is None else labels.get(number, "")


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    content = cast(CocoRecord, record)
    captions = fields.texts([entry["caption"] for entry in content["captions"]], "captions", problems)
    problems += gathered.unknown([dict.fromkeys(content["unknown"])], frozenset(), "images")
    problems += gathered.unknown(content["captions"], CAPTION, "captions")
    problems += gathered.unknown(content["instances"], INSTANCE | {"category"}, "instances")
    listed = ((str(entry.get("id", place)), entry) for place, entry in enumerate(content["instances"]))
    image, *also = [fields.image_name({"file_name": name}, "file_name") for name in content["file_name"]]
    return Annotation(
        file=name,
        image=image,
        also=tuple(also),
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
