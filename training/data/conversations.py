"""What is said of pictures in the columns of shards: captions, questions, polls, conversations, all as exchanges.

An exchange is a question and its answer; a caption is the answer to no question. Columns other than captions are lists
of structs: questions and polls with question and answer; messages with conversation, role and content, turn by turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple

from granary.curation.errors import UserError
from granary.curation.store.sampling import priority
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.tokenizer import filled
from granary.training.method import Moment

Column = Literal["captions", "questions", "polls", "messages"]
IMAGE = "<image>"  # in a text: where the picture is shown


class Exchange(NamedTuple):
    """A question, None for a description, and its answer."""

    question: str | None
    answer: str


Conversation = list[Exchange]


def conversations(column: Column, value: Sequence[Any] | None) -> list[Conversation]:
    """Return what a cell of a column says of its picture: conversations, most of them of one exchange.

    Args:
        column: captions, questions, polls or messages.
        value: of a row; what is blank, a question without an answer, and turns out of order are left out.
    """
    if column == "captions":
        return [[Exchange(None, caption)] for caption in filled(value)]
    rows = [row for row in value or () if isinstance(row, Mapping)]
    if column != "messages":
        pairs = [(_text(row, "question"), _text(row, "answer")) for row in rows]
        return [[Exchange(question, answer)] for question, answer in pairs if question and answer]
    chats = [_chat(list(turns)) for _, turns in groupby(rows, key=lambda row: row.get("conversation"))]
    return [chat for chat in chats if chat]


def _chat(turns: Sequence[Mapping[str, Any]]) -> Conversation:
    """Return the exchanges of a conversation: turns of the user, each followed by one of the assistant."""
    pairs = pairwise(turns)
    return [
        Exchange(_text(asked, "content"), _text(said, "content"))
        for asked, said in pairs
        if (asked.get("role"), said.get("role")) == ("user", "assistant") and _text(said, "content")
    ]


def _text(row: Mapping[str, Any], key: str) -> str:
    return str(row.get(key) or "").replace(IMAGE, "").strip()


def draw_conversations(batch: Part, columns: Sequence[Column], moment: Moment) -> list[Conversation | None]:
    """Draw a conversation for each sample by (seed, step, id): a column that has one, each alike, then one of it.

    Args:
        batch: with the columns and `id`.
        columns: that are drawn from.
        moment: of the run.

    Returns:
        For each sample a conversation, None where nothing is said of it.
    """
    drawn: list[Conversation | None] = []
    for place, number in enumerate(priority(moment.seed, list(batch["id"]), f"said/{moment.step}").tolist()):
        said = [some for some in (conversations(column, batch[column][place]) for column in columns) if some]
        chosen = said[number % len(said)] if said else None
        drawn.append(chosen[number // len(said) % len(chosen)] if chosen else None)
    return drawn


def spoken_corpus(datasets: Sequence[shards.Dataset], columns: Sequence[Column]) -> Iterator[str]:
    """Yield all questions and answers of some columns, row groups in an order drawn by hash.

    Raises:
        UserError: there is none at all.
    """
    groups, any_text = [group for dataset in datasets for group in dataset.groups], False
    for place in priority(0, range(len(groups)), "corpus").argsort():
        table = shards.read_group(groups[place], list(columns))
        for column in columns:
            for cell in table[column].to_pylist():
                for exchange in (exchange for chat in conversations(column, cell) for exchange in chat):
                    any_text = True
                    yield from (text for text in exchange if text)
    if not any_text:
        paths, names = ", ".join(dataset.path for dataset in datasets), ", ".join(columns)
        raise UserError(f"data: nothing is said in the columns {names} of {paths}; options.columns names others")
