"""granary's own form: JSON Lines, one image a line. Every field but `image` may be missing.

{"image": "photos/1.jpg",            file name below the folder of the images
 "split": "train",
 "caption": "A long description.",   or short_caption and extra_caption
 "masks": [{"key": "1",              unique in the image; by default the place in the list, from 0
            "parent": "0",           key of the mask around it
            "label": "door", "caption": "A white door with a latch.",
            "quality": 0,            0 good, 1 dull (the label alone is used), 2 unusable
            "box": [120, 200, 220, 400],               x0, y0, x1, y1 in pixels, x1 and y1 exclusive, or
            "rle": {"size": [600, 800], "counts": "..."},  COCO run lengths (height, width), text or numbers, or
            "png": "iVBORw0..."}],                     base64 of a PNG of the size of the image
 "summaries": {"base": ["..."], "m-1-sc": ["..."]},    short texts of the whole image and of masks
 "negatives": {"base": {"swaps": ["..."]}},            by kind
 "scores": {"base": {"sum": 24.1, "swaps_0": 22.9}}}   logits of the first summary and of each negative
"""

from __future__ import annotations

from collections.abc import Mapping

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import lines
from granary.curation.dense.tree import UNUSABLE, Annotation, Mask, Png, Problem, RunLengths

TOP = frozenset(
    ["image", "split", "caption", "short_caption", "extra_caption", "masks", "summaries", "negatives", "scores"]
)
MASK = frozenset(["key", "parent", "label", "caption", "quality", "box", "rle", "png"])
records = lines.records


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one line; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    _unknown(record, TOP, "", problems)
    masks = fields.numbered(record.get("masks"), "masks", problems)
    captions = [fields.text(record, field, problems) for field in ("extra_caption", "caption")]
    return Annotation(
        file=name,
        image=fields.image_name(record),
        split=fields.text(record, "split", problems),
        masks=fields.masks_of(((_name(place, mask), mask) for place, mask in masks), _mask, problems),
        short_caption=fields.text(record, "short_caption", problems),
        extra_caption="\n".join(filter(None, captions)),
        **fields.generated(record, problems),
        problems=problems,
    )


def _name(place: str, value: object) -> str:
    """Return what a mask is called before it is read: its key where it has one, else its place."""
    return str(value.get("key", place)) if isinstance(value, Mapping) else place


def _mask(name: str, value: object, problems: list[Problem]) -> Mask:
    entry, key = fields.json_object(value), fields.key(name)
    if not key:
        raise ValueError("the key of the mask is empty")
    _unknown(entry, MASK, key, problems)
    return Mask(
        key=key,
        parent=fields.key(entry.get("parent")),
        label=fields.text(entry, "label", problems, key),
        caption=fields.text(entry, "caption", problems, key),
        quality=min(max(fields.integer(entry.get("quality") or 0), 0), UNUSABLE),
        pixels=_pixels(entry),
        box=None if entry.get("box") is None else fields.box(entry["box"]),
    )


def _pixels(entry: JsonObject) -> Png | RunLengths | None:
    """Return the pixels of a mask; None where it is a box."""
    code, png = entry.get("rle"), entry.get("png")
    if (code is not None and png is not None) or (code is None and png is None and entry.get("box") is None):
        raise ValueError("give one of rle and png, or a box")
    if png is not None:
        return Png(png)
    if code is not None and not isinstance(code, Mapping):
        raise ValueError("rle is no JSON object")
    return RunLengths(code) if code else None


def _unknown(record: JsonObject, known: frozenset[str], part: str, problems: list[Problem]) -> None:
    for name in sorted(record.keys() - known):
        where = f"{part}/{name}" if part else name
        problems.append(
            Problem(where, "UnknownKey", f"the key {name!r} is not read; the keys are {', '.join(sorted(known))}")
        )
