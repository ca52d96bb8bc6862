"""What is said of pictures in the columns of shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import List, Value
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.conversations import Exchange, conversations, draw_conversations, spoken_corpus
from granary.training.method import Moment

QUESTIONS = [
    {"id": "1", "kind": "what", "question": "What is it?", "answer": "a dog", "answers": ["a dog"] * 10},
    {"id": "2", "kind": "where", "question": "Where?", "answer": "", "answers": []},  # of a test set
]
ASKED = List(
    {name: Value("string") for name in ("id", "kind", "question", "answer")} | {"answers": List(Value("string"))}
)
MESSAGES = [
    {"conversation": "a", "role": "user", "content": "<image>\nWhat is it?"},
    {"conversation": "a", "role": "assistant", "content": "A dog."},
    {"conversation": "a", "role": "user", "content": "And its colour?"},
    {"conversation": "a", "role": "assistant", "content": "Red."},
    {"conversation": "b", "role": "system", "content": "Be brief."},
    {"conversation": "b", "role": "user", "content": "Where\n<image>"},
    {"conversation": "b", "role": "assistant", "content": "At sea."},
    {"conversation": "c", "role": "assistant", "content": "Nobody asked."},
    {"conversation": "d", "role": "user", "content": "Who?"},
]


def test_every_column_is_read_as_exchanges() -> None:
    assert conversations("captions", ["a dog", " ", "red"]) == [[Exchange(None, "a dog")], [Exchange(None, "red")]]
    assert conversations("questions", QUESTIONS) == [[Exchange("What is it?", "a dog")]]
    poll = {"kind": "random", "object": "cat", "question": "Is there a cat?", "answer": "no"}
    assert conversations("polls", [poll]) == [[Exchange("Is there a cat?", "no")]]
    assert conversations("messages", MESSAGES) == [
        [Exchange("What is it?", "A dog."), Exchange("And its colour?", "Red.")],
        [Exchange("Where", "At sea.")],
    ]
    for column in ("captions", "questions", "polls", "messages"):
        assert conversations(column, None) == []  # type: ignore[arg-type]


def test_draws_hang_on_seed_step_and_id_and_take_columns_alike() -> None:
    count = 4000
    batch: dict[str, Any] = {
        "id": [f"id{n}" for n in range(count)],
        "captions": [["one"]] * count,
        "questions": [[{"question": f"{q}?", "answer": f"{q}"} for q in range(4)]] * count,
    }
    drawn = draw_conversations(batch, ("captions", "questions"), Moment(3, 10, 5))
    answers = Counter(chat[0].answer for chat in drawn if chat)
    assert answers["one"] == pytest.approx(count / 2, rel=0.1)
    assert all(answers[str(q)] == pytest.approx(count / 8, rel=0.2) for q in range(4))
    other = {name: values[::-1] for name, values in batch.items()}
    assert draw_conversations(other, ("captions", "questions"), Moment(3, 99, 5, rank=1)) == drawn[::-1]
    assert draw_conversations(batch, ("captions", "questions"), Moment(4, 10, 5)) != drawn


def test_a_column_without_a_word_gives_way_to_the_others() -> None:
    batch = {"id": ["a", "b"], "captions": [[], []], "questions": [QUESTIONS, QUESTIONS[1:]]}
    drawn = draw_conversations(batch, ("captions", "questions"), Moment(0, 10, 0))
    assert drawn == [[Exchange("What is it?", "a dog")], None]


def test_the_corpus_has_questions_and_answers(tmp_path: Path) -> None:
    rows = [{**row, "captions": ["a shape"], "questions": QUESTIONS} for row in shapes(4)]
    run = str(write_shards(tmp_path / "run", rows, shards=1, extra={"questions": ASKED}))
    dataset = shards.open_dataset(run, ("image", "captions", "questions"))
    assert Counter(spoken_corpus([dataset], ("captions", "questions"))) == {"a shape": 4, "What is it?": 4, "a dog": 4}
    mute = str(write_shards(tmp_path / "mute", [{**row, "captions": [" "]} for row in shapes(4)], shards=1))
    dataset = shards.open_dataset(mute, ("image", "captions"))
    with pytest.raises(UserError, match=r"nothing is said in the columns captions of .*; options.columns names others"):
        list(spoken_corpus([dataset], ("captions",)))
