"""POPE: lines of questions whether an object is in a picture, with the answers yes and no.

Li et al. 2023, arXiv 2305.10355; the files are those of https://github.com/AoiDragon/POPE,
output/coco/coco_pope_KIND.json, one JSON object a line: {"question_id": 1, "image": "COCO_val2014_000000016631.jpg",
"text": "Is there a person in the image?", "label": "yes"}, some with an `image_id` too. How absent objects were
chosen (random, popular, adversarial) is said by the name of a file alone. One file or a folder of them; the lines are
held while the records are listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, cast

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import gathered, lines
from granary.curation.dense.readers.gathered import Gathering
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import Annotation, InvalidAnnotation, Problem
from granary.curation.sources import Source
from granary.curation.store.language import PollRow

KNOWN = frozenset({"question_id", "image", "image_id", "text", "label"})
KINDS = ("random", "popular", "adversarial")
ASKED = re.compile(r"is there an? (.+?) in the (?:image|picture|photo)\s*\?", re.IGNORECASE)


def records(source: Source, max_bytes: int) -> Iterator[Record]:
    """Yield the pictures in the order of their first lines, each with its polls as JSON, then what cannot be read.

    Args:
        source: a file or a folder of files.
        max_bytes: a longer line is lost.
    """
    gathering = Gathering()
    for line in lines.records(source, max_bytes, (".json", *lines.ENDINGS)):
        if line.error:
            gathering.lose(line.name, *line.error)
            continue
        try:
            entry = fields.load(line.text, [])
            name = fields.image_name(entry)
        except InvalidAnnotation as error:
            gathering.lose(line.name, error.kind, str(error))
            continue
        file = line.name.rpartition(":")[0].lower()
        kind = next((kind for kind in KINDS if kind in file), "")
        gathering.add([name], {"place": line.name, "kind": kind, "poll": entry})
    yield from gathering.records(gathered.stem_of(source))


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    (image,), entries, problems = gathered.opened(data)
    problems += gathered.unknown([fields.json_object(entry["poll"]) for entry in entries], KNOWN, "lines")
    polls = [poll for entry in entries if (poll := _poll(entry, problems))]
    return Annotation(file=name, image=image, polls=polls, problems=problems)


def _poll(entry: JsonObject, problems: list[Problem]) -> PollRow | None:
    """Return a poll; None where it asks nothing, or its label is no answer, which is noted."""
    part, poll = str(entry["place"]), fields.json_object(entry["poll"])
    text, label = fields.text(poll, "text", problems, part), str(poll.get("label")).strip().lower()
    if not text or label not in ("yes", "no"):
        message = "nothing is asked" if not text else f"the label is {label[:20]!r}; yes or no was expected"
        problems.append(Problem(part, "InvalidPoll", message))
        return None
    asked = ASKED.fullmatch(text)
    answer = cast(Literal["yes", "no"], label)
    return PollRow(kind=str(entry["kind"]), object=asked[1].lower() if asked else "", question=text, answer=answer)
