"""Long descriptions without masks, as JSON Lines: ImageInWords records and Localized Narratives.

ImageInWords (Garg et al., arXiv 2405.02793), all five released sets: `image/key` or `image`, `IIW` (by people; where
there is none `IIW-P5B`, by a model), and in IIW-400 `objects` with a `label`, a `description` and `normalized_coords`,
a box in cells of a thousandth of height and width, 0..999, both ends included, y before x; one box in twenty has its
corners turned round, as people drew it. The same with `image_key`, `description` and `box_yxyx_999` is read too.
Localized Narratives (Pont-Tuset et al., arXiv 1912.03098): `image_id` (of COCO without the zeros of its file names),
`caption`, `timed_caption` (utterances with times) and `traces` (mouse positions as shares of width and height, with
times). Each sentence becomes a region: the bounds of where the mouse was while it was spoken. Such a box is rough; it
says where the speaker pointed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict, cast

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.packing import sentences
from granary.curation.dense.readers import lines
from granary.curation.dense.texts import words
from granary.curation.dense.tree import Annotation, InvalidAnnotation, Mask, Problem

CELLS, COCO_DIGITS = 1000, 12
KEYS = ("image/key", "image_key", "image")
DESCRIPTIONS = ("IIW", "description", "IIW-P5B")
BOXES = ("normalized_coords", "box_yxyx_999")
records = lines.records


class TimedCaption(TypedDict, total=False):
    """A word or a group of words, and the seconds in which it was spoken.

    Args:
        caption: the same in older copies.
    """

    utterance: str
    caption: str
    start_time: float
    end_time: float


class TracePoint(TypedDict):
    """Where the mouse was, as shares of width and height, and when, in seconds."""

    x: float
    y: float
    t: float


class Narrative(TypedDict, total=False):
    """What a localized narrative holds when it is right; of which nobody has made sure."""

    timed_caption: list[TimedCaption]
    traces: list[list[TracePoint]]


class Moment(NamedTuple):
    """A place of the mouse at a time."""

    t: float
    x: float
    y: float


@dataclass(frozen=True)
class Sentence:
    """A sentence, and where the mouse was while it was spoken."""

    text: str
    moments: list[Moment]


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one line; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, problems)
    key = _present(record, KEYS)
    if key:
        return _in_words(record, name, key, problems)
    if "image_id" in record:
        return _narrative(record, name, problems)
    raise InvalidAnnotation("NoImageName", f"none of {', '.join(map(repr, KEYS))} and 'image_id' is there")


def _present(record: JsonObject, names: Sequence[str]) -> str:
    """Return the first name under which a record has something; "" where there is none."""
    return next((name for name in names if record.get(name) is not None), "")


def _in_words(record: JsonObject, name: str, key: str, problems: list[Problem]) -> Annotation:
    """Read a record of ImageInWords.

    Args:
        key: under which it names the image.
    """
    return Annotation(
        file=name,
        image=fields.image_name(record, key),
        masks=fields.masks_of(fields.numbered(record.get("objects"), "objects", problems), _object, problems),
        relative=True,
        extra_caption=fields.text(record, _present(record, DESCRIPTIONS), problems),
        problems=problems,
    )


def _narrative(record: JsonObject, name: str, problems: list[Problem]) -> Annotation:
    """Read a localized narrative."""
    image, *also = _pictures(record)
    return Annotation(
        file=name,
        image=image,
        also=tuple(also),
        masks=fields.masks_of(_spoken(record, problems), _sentence, problems),
        relative=True,
        extra_caption=fields.text(record, "caption", problems),
        problems=problems,
    )


def _pictures(record: JsonObject) -> list[str]:
    """Return the names that the picture of a narrative may have: COCO's have 12 digits, in a folder for each split."""
    number = record.get("image_id")
    image = str(number) if type(number) is int else fields.image_name(record, "image_id")
    split = re.fullmatch(r"mscoco_(\w+)", str(record.get("dataset_id")))
    if split is None or not image.isdecimal():
        return [image]
    return [image.zfill(COCO_DIGITS), f"{split[1]}/{image.zfill(COCO_DIGITS)}", image]


def _object(place: str, value: object, problems: list[Problem]) -> Mask:
    entry = fields.json_object(value)
    y0, x0, y1, x1 = _corners(entry.get(_present(entry, BOXES)))
    return Mask(
        key=place,
        label=fields.text(entry, "label", problems, place),
        caption=fields.text(entry, "description", problems, place),
        box=(min(x0, x1), min(y0, y1), max(x0, x1) + 1, max(y0, y1) + 1),
    )


def _corners(box: object) -> list[int]:
    """Return y0, x0, y1, x1 of a list of numbers, which may be a text, as its numbers may be; raises ValueError."""
    listed = [number.strip(" '\"") for number in box.strip("[() ]").split(",")] if isinstance(box, str) else box
    if not isinstance(listed, list) or len(listed) != 4:
        raise ValueError("the region has no box of four numbers")
    return [fields.integer(number) for number in listed]


def _spoken(record: JsonObject, problems: list[Problem]) -> Iterator[tuple[str, Sentence]]:
    """Yield the sentences of a narrative whose times are known, each named by its place."""
    caption = fields.text(record, "caption", [])
    try:
        times, moments = _times(cast(Narrative, record)), _moments(cast(Narrative, record))
    except (KeyError, TypeError, ValueError):
        problems.append(Problem("traces", "InvalidMask", "the times or the traces cannot be read; all are lost"))
        return
    spoken = 0
    for place, (start, stop) in enumerate(sentences(caption)):
        count = words(caption[start:stop])
        of_words = times[spoken : spoken + count]
        spoken += count
        if of_words and moments:
            begin, end = of_words[0][0], of_words[-1][1]
            yield str(place), Sentence(caption[start:stop], [at for at in moments if begin <= at.t <= end])


def _times(record: Narrative) -> list[tuple[float, float]]:
    """Return begin and end of each word, in seconds."""
    return [
        (float(timed["start_time"]), float(timed["end_time"]))
        for timed in record.get("timed_caption") or []
        for _ in range(max(1, words(str(timed["utterance"] if "utterance" in timed else timed["caption"]))))
    ]


def _moments(record: Narrative) -> list[Moment]:
    """Return the places of the mouse."""
    return [
        Moment(float(point["t"]), float(point["x"]), float(point["y"]))
        for trace in record.get("traces") or []
        for point in trace
    ]


def _sentence(place: str, sentence: Sentence, problems: list[Problem]) -> Mask:
    moments = sentence.moments
    if not moments or not all(math.isfinite(at.x) and math.isfinite(at.y) for at in moments):
        raise ValueError("the mouse was nowhere while the sentence was spoken")
    (x0, x1), (y0, y1) = _cells([at.x for at in moments]), _cells([at.y for at in moments])
    return Mask(key=place, caption=sentence.text, box=(x0, y0, x1, y1))


def _cells(shares: list[float]) -> tuple[int, int]:
    """Return the first cell that shares of a side fall into, and the one behind the last."""
    cells = [min(max(int(share * CELLS), 0), CELLS - 1) for share in shares]
    return min(cells), max(cells) + 1
