"""Read annotations as JSON of unknown origin: every field is checked, what is wrong is noted, the rest is kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypedDict, TypeVar

from granary.curation.dense.texts import cleaned
from granary.curation.dense.tree import Box, InvalidAnnotation, Mask, Problem

MAX_COORDINATE = 1 << 30
JsonObject = Mapping[str, object]  # as it came: nothing is known of the values
T = TypeVar("T")
UNNAMEABLE = re.compile("[\0\ud800-\udfff]")  # what no file name written as text holds


class Generated(TypedDict):
    """The texts that came with an annotation, as fields of an `Annotation`."""

    summaries: dict[str, list[str]]
    negatives: dict[str, dict[str, list[str]]]
    scores: dict[str, dict[str, float]]


def load(data: bytes | str, problems: list[Problem]) -> JsonObject:
    """Return a JSON object; of a key that stands in an object twice the first value counts.

    Args:
        data: UTF-8, a byte-order mark allowed.
        problems: gets the keys that were there twice.

    Raises:
        InvalidAnnotation: it is not a JSON object.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        record = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, problems))
    except (ValueError, RecursionError) as error:
        raise InvalidAnnotation("InvalidJson", str(error)[:200]) from error
    if not isinstance(record, dict):
        raise InvalidAnnotation("InvalidJson", f"a JSON object was expected, not a {type(record).__name__}")
    return record


def _unique(pairs: list[tuple[str, object]], problems: list[Problem]) -> JsonObject:
    """Return an object of its keys and values; a key that is there again is noted, its first value counts."""
    values = dict(pairs)
    if len(values) == len(pairs):  # as nearly always
        return values
    values.clear()
    for key, value in pairs:
        if key in values:
            message = "the key stands twice in one object; the first value was kept"
            problems.append(Problem(cleaned(key), "DuplicateKey", message))
        values.setdefault(key, value)
    return values


def json_object(value: object) -> JsonObject:
    """Return a value that must be a JSON object; raises ValueError when it is something else."""
    if not isinstance(value, Mapping):
        raise ValueError(f"a JSON object was expected, not a {type(value).__name__}")
    return value


def image_name(record: JsonObject, name: str = "image") -> str:
    """Return the file name of the picture; raises InvalidAnnotation when there is none."""
    value = record.get(name)
    if not isinstance(value, str) or not value.strip() or UNNAMEABLE.search(value):
        raise InvalidAnnotation("NoImageName", f"{name!r} names no image")
    return value


def text(record: JsonObject, name: str, problems: list[Problem], part: str = "") -> str:
    """Return a text, cleaned; "" where it is missing, and where it is no text, which is noted."""
    value = record.get(name)
    if value is None or isinstance(value, str):
        return cleaned(value or "")
    problems.append(Problem(part or name, "InvalidText", f"{name!r} is no text but a {type(value).__name__}"))
    return ""


def integer(value: object) -> int:
    """Return a number written as a number or in quotes; raises ValueError when it is no whole one."""
    if isinstance(value, str):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    if int(value) != value or abs(value) > MAX_COORDINATE:
        raise ValueError(f"{str(value)[:40]} is no whole number in range")
    return int(value)


def box(value: object) -> Box:
    """Return x0, y0, x1, y1 of {topLeft, bottomRight}, [[x0, y0], [x1, y1]] or [x0, y0, x1, y1].

    The second corner is exclusive. Raises ValueError when it is something else.
    """
    try:
        x0, y0, x1, y1 = (integer(number) for number in _corners(value))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError("the bounds are not two corners") from error
    return x0, y0, x1, y1


def _corners(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return [value[name][axis] for name in ("topLeft", "bottomRight") for axis in "xy"]
    if not isinstance(value, list):
        raise TypeError
    return [*value[0], *value[1]] if len(value) == 2 else value


def key(value: object) -> str:
    """Return the key of a mask, given as number or text; -1 and nothing are ""."""
    if value is None or value == "" or (isinstance(value, str) and value.strip() == "-1"):
        return ""
    if isinstance(value, str):
        return cleaned(value)
    number = integer(value)
    return "" if number < 0 else str(number)


def masks_of(
    listed: Iterable[tuple[str, T]], read: Callable[[str, T, list[Problem]], Mask], problems: list[Problem]
) -> dict[str, Mask]:
    """Read the masks of an annotation; one that cannot be read is noted and left out.

    Args:
        listed: name and record of each, in file order.
        read: (name, record, problems) -> Mask; raises ValueError.
        problems: gets what was lost.
    """
    masks: dict[str, Mask] = {}
    for name, record in listed:
        try:
            mask = read(name, record, problems)
            if not mask.key:
                raise ValueError("the mask has no key")
        except ValueError as error:
            problems.append(Problem(cleaned(name), "InvalidMask", str(error)[:200]))
            continue
        if mask.key in masks:
            problems.append(Problem(mask.key, "DuplicateKey", "two masks have this key; the first was kept"))
        masks.setdefault(mask.key, mask)
    return masks


def numbered(value: object, name: str, problems: list[Problem]) -> list[tuple[str, object]]:
    """Return the records of a list of masks, each named by its place; what is not a list is noted."""
    if value and not isinstance(value, list):
        problems.append(Problem(name, "InvalidMask", "a list was expected; all masks are lost"))
    return [(str(place), record) for place, record in enumerate(value if isinstance(value, list) else [])]


def generated(record: JsonObject, problems: list[Problem]) -> Generated:
    """Return the fields `summaries`, `negatives` and `scores` of sDCI's `complete/`, as `Annotation` has them."""
    summaries = {
        entry: texts(value, f"summaries/{entry}", problems)
        for entry, value in _mapping(record.get("summaries"), "summaries", problems)
    }
    negatives = {
        entry: {
            kind: texts(value, f"negatives/{entry}/{kind}", problems)
            for kind, value in _mapping(kinds, f"negatives/{entry}", problems)
        }
        for entry, kinds in _mapping(record.get("negatives"), "negatives", problems)
    }
    logits = record.get("clip_scores" if "clip_scores" in record else "scores")
    named = {entry: scores(value, f"scores/{entry}", problems) for entry, value in _mapping(logits, "scores", problems)}
    return {"summaries": summaries, "negatives": negatives, "scores": named}


def _mapping(value: object, part: str, problems: list[Problem]) -> Iterator[tuple[str, object]]:
    """Yield the fields of an object, their names cleaned; what is no object is noted."""
    if isinstance(value, Mapping):
        yield from ((cleaned(name), field) for name, field in value.items())
    elif value is not None:
        problems.append(Problem(part, "InvalidText", "a JSON object was expected; its texts are lost"))


def texts(value: object, part: str, problems: list[Problem]) -> list[str]:
    """Return a text or a list of texts as a list of cleaned ones; empty ones and what is no text are noted."""
    kept = []
    for number, entry in enumerate(value if isinstance(value, list) else [value]):
        clean = cleaned(entry) if isinstance(entry, str) else ""
        if clean:
            kept.append(clean)
        else:
            error = "EmptyText" if isinstance(entry, str) else "InvalidText"
            problems.append(Problem(f"{part}/{number}", error, "nothing is said here"))
    return kept


def scores(value: object, part: str, problems: list[Problem]) -> dict[str, float]:
    """Return logits by name; what is no number is noted."""
    logits = {}
    for name, score in value.items() if isinstance(value, Mapping) else [("", value)]:
        if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
            logits[name] = float(score)
        else:
            problems.append(Problem(f"{part}/{name}", "InvalidScore", "the score is no number"))
    return logits
