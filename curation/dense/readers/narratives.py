"""Long descriptions without masks, as JSON Lines: ImageInWords records and Localized Narratives.

ImageInWords (Garg et al., arXiv 2405.02793): `image_key`, `description`, and `objects` with a `label`, a `description`
and a box in cells of a thousandth of height and width, 0..999, both ends included, y before x; one box in
twenty has its corners turned round, as people drew it.
Localized Narratives (Pont-Tuset et al., arXiv 1912.03098): `image_id`, `caption`, `timed_caption` (words with times)
and `traces` (mouse positions as shares of width and height, with times). Each sentence becomes a region: the bounds of
where the mouse was while it was spoken. Such a box is rough; it says where the speaker pointed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from granary.curation.dense import fields
from granary.curation.dense.packing import sentences
from granary.curation.dense.readers import lines
from granary.curation.dense.texts import words
from granary.curation.dense.tree import Annotation, Box, InvalidAnnotation, Mask, Problem

CELLS = 1000
records = lines.records


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one line; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    if "image_key" in record:
        masks = fields.masks_of(_listed(record, "objects", problems), _object, problems)
        image, caption = "image_key", "description"
    elif "image_id" in record:
        masks = fields.masks_of(_spoken(record, problems), _sentence, problems)
        image, caption = "image_id", "caption"
    else:
        raise InvalidAnnotation("NoImageName", "neither 'image_key' nor 'image_id' is there")
    return fields.annotation(
        {},
        problems,
        file=name,
        image=fields.image_name(record, image),
        masks=masks,
        relative=True,
        extra_caption=fields.text(record, caption, problems),
    )


def _listed(record: Mapping[str, Any], name: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    found = record.get(name) or []
    if not isinstance(found, list):
        problems.append(Problem(name, "InvalidMask", "a list was expected; all of it is lost"))
        found = []
    return ((str(place), entry) for place, entry in enumerate(found))


def _object(place: str, entry: Mapping[str, Any], problems: list[Problem]) -> Mask:
    try:
        y0, x0, y1, x1 = (fields.integer(value) for value in entry["box_yxyx_999"])
    except (KeyError, TypeError) as error:
        raise ValueError("the region has no box of four numbers") from error
    return Mask(
        key=place,
        label=fields.text(entry, "label", problems, place),
        caption=fields.text(entry, "description", problems, place),
        box=(min(x0, x1), min(y0, y1), max(x0, x1) + 1, max(y0, y1) + 1),
    )


def _spoken(record: Mapping[str, Any], problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """Yield for each sentence its text and the mouse positions of the time in which it was spoken."""
    caption = fields.text(record, "caption", [])
    try:
        spoken = [
            (float(timed["start_time"]), float(timed["end_time"]))
            for timed in record.get("timed_caption") or []
            for _ in range(max(1, words(str(timed["caption"]))))
        ]  # the times of each word
        points = [
            (float(point["t"]), float(point["x"]), float(point["y"]))
            for trace in record.get("traces") or []
            for point in trace
        ]
    except (KeyError, TypeError, ValueError):
        problems.append(Problem("traces", "InvalidMask", "the times or the traces cannot be read; all are lost"))
        return
    said = 0
    for place, (start, stop) in enumerate(sentences(caption)):
        count = words(caption[start:stop])
        times = spoken[said : said + count]
        said += count
        if times and points:
            inside = [(x, y) for t, x, y in points if times[0][0] <= t <= times[-1][1]]
            yield str(place), {"text": caption[start:stop], "points": inside}


def _sentence(place: str, entry: Mapping[str, Any], problems: list[Problem]) -> Mask:
    if not entry["points"] or not all(math.isfinite(value) for point in entry["points"] for value in point):
        raise ValueError("the mouse was nowhere while the sentence was spoken")
    return Mask(key=place, caption=entry["text"], box=_bounds(entry["points"]))


def _bounds(points: list[tuple[float, float]]) -> Box:
    cells = [[min(max(int(value * CELLS), 0), CELLS - 1) for value in axis] for axis in zip(*points, strict=True)]
    return min(cells[0]), min(cells[1]), max(cells[0]) + 1, max(cells[1]) + 1
