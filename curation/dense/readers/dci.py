"""DCI and sDCI: one JSON file per image, in `annotations/` (by people) or `complete/` (with summaries and negatives).

Both documented forms are read: what DCI's exporter writes (bounds as {topLeft: {x, y}, bottomRight: {x, y}}, the second
corner exclusive, children and parent as numbers, empty texts) and what its README prints (bounds as [[x, y], [x, y]],
children and parent as text, no label or caption on bad masks). Masks under 5,000 pixels are named as children and have
no entry; such names are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from granary.curation.dense import fields
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import UNUSABLE, Annotation, Mask, Png, Problem
from granary.curation.sources import Source, listing


def records(source: Source, max_bytes: int) -> Iterator[Record]:
    """Yield the annotation files of a folder, sorted by name; `splits.json` is not one."""
    for file in listing.shards(source.path, (".json",)):
        name = file.path.rsplit("/", 1)[-1]
        if not name.startswith(".") and name != "splits.json":
            yield Record(file.path, path=file.path, size=file.size, stamp=file.stamp)


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one annotation file; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    masks = record.get("mask_data")
    if masks is not None and not isinstance(masks, Mapping):
        problems.append(Problem("mask_data", "InvalidMask", "a JSON object was expected; all masks are lost"))
        masks = None
    return Annotation(
        file=name,
        image=fields.image_name(record),
        masks=fields.masks_of((masks or {}).items(), _mask, problems),
        short_caption=fields.text(record, "short_caption", problems),
        extra_caption=fields.text(record, "extra_caption", problems),
        **fields.generated(record, problems),
        problems=problems,
    )


def _mask(name: str, value: object, problems: list[Problem]) -> Mask:
    entry = fields.json_object(value)
    if not isinstance(entry.get("outer_mask"), str):
        raise ValueError("the mask has no outer_mask")
    children = entry.get("requirements") or []
    if not isinstance(children, list):
        raise ValueError("requirements is no list")
    bounds, area = entry.get("bounds"), entry.get("area")
    return Mask(
        key=fields.key(name),
        parent=fields.key(entry.get("parent")),
        children=tuple(fields.key(child) for child in children),
        label=fields.text(entry, "label", problems, name),
        caption=fields.text(entry, "caption", problems, name),
        quality=min(max(fields.integer(entry.get("mask_quality") or 0), 0), UNUSABLE),
        pixels=Png(entry["outer_mask"]),
        box=None if bounds is None else fields.box(bounds),
        area=None if area is None else fields.integer(area),
    )
