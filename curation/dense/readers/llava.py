"""LLaVA: conversations about pictures, as instruction tuning reads them.

Liu et al. 2023, arXiv 2304.08485; the schema is that of https://github.com/haotian-liu/LLaVA,
docs/Finetune_Custom_Data.md: a list of {"id", "image": "coco/train2017/000000033471.jpg", "conversations": [{"from":
"human", "value": "<image>\\nWhat ...?"}, {"from": "gpt", "value": "..."}, ...]}, in .json files, which are read
whole, or a record a line in .jsonl. Records without a picture, of which the mixtures have some, are dead: there is
nothing to show.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Literal

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import gathered, lines
from granary.curation.dense.readers.gathered import Gathering
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import Annotation, InvalidAnnotation, Problem
from granary.curation.errors import UserError
from granary.curation.sources import Source
from granary.curation.store.language import MessageRow

Role = Literal["user", "assistant", "system"]
KNOWN = frozenset({"id", "image", "conversations", "model"})
TURN = frozenset({"from", "value"})
ROLES: dict[object, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


def records(source: Source, max_bytes: int) -> Iterator[Record]:
    """Yield the pictures in the order of their first records, each with its conversations as JSON, then what has none.

    Args:
        source: a file or a folder of files.
        max_bytes: a longer line is lost; .json files are read whole.

    Raises:
        UserError: a .json file holds no list, or there is no file.
    """
    gathering = Gathering()
    for place, entry in _entries(source, max_bytes, gathering):
        try:
            names = [fields.image_name(entry)]
        except InvalidAnnotation as error:
            gathering.lose(place, error.kind, str(error))
        else:
            gathering.add(names, {"place": place, "record": entry})
    yield from gathering.records(gathered.stem_of(source))


def _entries(source: Source, max_bytes: int, gathering: Gathering) -> Iterator[tuple[str, JsonObject]]:
    """Yield place and content of each record; what is none is lost."""
    if gathered.holds(source, lines.ENDINGS):
        for line in lines.records(source, max_bytes):
            try:
                if line.error:
                    raise InvalidAnnotation(*line.error)
                yield line.name, fields.load(line.text, [])
            except InvalidAnnotation as error:
                gathering.lose(line.name, error.kind, str(error))
        return
    for path, whole in gathered.json_files(source):
        if not isinstance(whole, list):
            raise UserError(f"annotations: {path} is no file of LLaVA: it holds no list of records")
        for number, entry in enumerate(whole):
            yield f"{path}:{number}", entry if isinstance(entry, dict) else {}


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    (image,), entries, problems = gathered.opened(data)
    problems += gathered.unknown([fields.json_object(entry["record"]) for entry in entries], KNOWN, "records")
    messages: list[MessageRow] = []
    for entry in entries:
        messages += _conversation(entry, {message["conversation"] for message in messages}, problems)
    return Annotation(file=name, image=image, messages=messages, problems=problems)


def _conversation(entry: JsonObject, taken: Container[str], problems: list[Problem]) -> list[MessageRow]:
    """Return the turns of a record; none where they are not turns of a user and an assistant, which is noted.

    Args:
        entry: the record and its place.
        taken: ids of other conversations about the picture: in the published files the id is often that of the
            picture, and a conversation whose id is taken is called after its place.
        problems: gets what was lost.
    """
    record, place = fields.json_object(entry["record"]), str(entry["place"])
    name, turns = gathered.identity(record.get("id")) or place, record.get("conversations")
    name = place if name in taken else name
    turns = turns if isinstance(turns, list) else []
    messages = [message for turn in turns if (message := _message(name, turn))]
    problems += gathered.unknown([turn for turn in turns if isinstance(turn, dict)], TURN, f"turns of {place}")
    roles = [message["role"] for message in messages if message["role"] != "system"]
    if len(messages) < len(turns) or len(roles) < 2 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        said = "its turns are not texts of human and gpt by turns"
        problems.append(Problem(place, "InvalidConversation", f"{said}; the conversation is lost"))
        return []
    return messages


def _message(conversation: str, turn: object) -> MessageRow | None:
    """Return a turn; None where it is none."""
    said = turn if isinstance(turn, dict) else {}
    role, text = ROLES.get(said.get("from")), fields.text(said, "value", [])
    return MessageRow(conversation=conversation, role=role, content=text) if role and text else None
