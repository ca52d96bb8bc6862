"""Blind: how far does one get without the picture? A benchmark that a blind model solves measures its texts.

The model sees the picture, a grey one, and that of another row; beside it a model learns from the texts of half of the
rows alone, and is tested on the others. Goyal et al. 2017 (arXiv 1612.00837), Hsieh et al. 2023 (arXiv 2306.14610).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.splits import held_out
from granary.training.evaluation.answers import vqa_accuracy
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.looked import LookedAt, Looks, own_logits
from granary.training.evaluation.negatives import CHANGES
from granary.training.evaluation.pairs import load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.protocols.order import OrderOptions, asked_of, check_kinds
from granary.training.evaluation.questions import (
    Question,
    QuestionOptions,
    answered,
    candidates_of,
    looked_at,
    mean,
    opened,
    questions_of,
)
from granary.training.evaluation.scores import Scores, Words
from granary.training.evaluation.text_only import Bigrams, usual_answers

GREY = (128, 128, 128)
NOTES = (
    "accuracy: with the picture; .grey: with a grey one; .other: with that of another row; .text: of a model that "
    "learns from the texts of half of the rows and is tested on the others, both ways.",
    "seen: accuracy less the best of these.",
)
Item = TypeVar("Item", bound="Question | Choice")


class Choice(NamedTuple):
    """A caption of a row and a text that is wrong."""

    key: str
    caption: str
    wrong: str


class BlindOptions(OrderOptions, QuestionOptions, frozen=True):
    """Options of the text-only audit."""

    task: Literal["vqa", "order"] = Field(
        "vqa", description="vqa: the questions of a generator; order: captions against their negatives, of any model"
    )
    kinds: Words = Field((), description="kinds of questions, or of negatives; default: all")


def evaluate(measured: Measured, options: BlindOptions) -> Scores:
    """Measure with and without the picture; without a split all rows are taken.

    Returns:
        accuracy with `.grey`, `.other` and `.text`, of order with `.chance`; seen; the number of questions, of
        pictures, of those without any, and of unreadable ones.
    """
    return _of_questions(measured, options) if options.task == "vqa" else _of_order(measured, options)


PROTOCOL = Protocol(evaluate, BlindOptions, batch=32, notes=NOTES)


def _of_questions(measured: Measured, options: BlindOptions) -> Scores:
    dataset = opened(measured, options, "the audit of questions")
    generator, candidates = (
        load_generator(measured.model, measured.device, measured.dtype),
        candidates_of(dataset, options),
    )

    def right(pictures: Tensor, asked: Sequence[Question]) -> list[float]:
        return [answer.score for answer in answered(generator, pictures, asked, options, candidates)]

    def text(learned: Sequence[Question], asked: Sequence[Question]) -> list[float]:
        return [
            vqa_accuracy(*pair) for pair in zip(usual_answers(learned, asked), (q.people for q in asked), strict=True)
        ]

    looked = looked_at(dataset, options, measured.limit)
    return audited(generator, looked, lambda row: questions_of(row, options), right, text, measured.batch)


def _of_order(measured: Measured, options: BlindOptions) -> Scores:
    options = options.model_copy(update={"kinds": options.kinds or tuple(CHANGES)})
    check_kinds(options)
    needs = ["captions", *([options.negatives] if options.negatives else [])]
    dataset = shards.open_dataset(
        measured.data, ["image", *needs], measured.split, options.holdout, "the audit of captions", measured.columns
    )
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)

    def choices(row: Part) -> list[Choice]:
        asked = asked_of(0, row, options)
        return [Choice(row["key"], one.caption, wrong) for one in asked for _, wrong in one.wrong]

    def right(pictures: Tensor, asked: Sequence[Choice]) -> list[float]:
        logits = own_logits(model, pictures, range(len(asked)), [choice[1:] for choice in asked])
        return (logits[:, 0] > logits[:, 1]).double().tolist()

    def text(learned: Sequence[Choice], asked: Sequence[Choice]) -> list[float]:
        language = Bigrams(dict.fromkeys(choice.caption for choice in learned))
        return [float(language.score(choice.caption) > language.score(choice.wrong)) for choice in asked]

    looked = LookedAt(dataset, needs, choices, limit=measured.limit)
    scores = audited(model, looked, choices, right, text, measured.batch)
    return Scores({**scores, "accuracy.chance": 0.5}, settings=scores.settings)


def audited(
    model: Looks,
    looked: LookedAt,
    items: Callable[[Part], list[Item]],
    right: Callable[[Tensor, Sequence[Item]], list[float]],
    text: Callable[[Sequence[Item], Sequence[Item]], list[float]],
    batch: int,
) -> Scores:
    """Ask with the picture, a grey one and another one, and a model of texts.

    Args:
        model: prepares pictures.
        looked: the rows.
        items: row -> what is asked of it.
        right: (pictures (n, ...), n things asked) -> how right each is.
        text: (things learned from, things asked) -> how right a model of their texts alone is.
        batch: pictures at once.
    """
    (grey,) = model.prepared([lambda: Image.new("RGB", (64, 64), GREY)])
    assert grey is not None
    every, sights = list[Item](), {name: list[float]() for name in ("own", "grey", "other")}
    others = _others(model, looked, batch)
    for rows, pictures in looked.batches(model, batch):
        asked = [(at, item) for at, row in enumerate(rows) for item in items(row)]
        at, some = [at for at, _ in asked], [item for _, item in asked]
        others_here = list(itertools.islice(others, len(rows)))
        shown = {"own": pictures[at, 0], "grey": grey.expand(len(at), *grey.shape)}
        if len(others_here) == len(rows):
            shown["other"] = torch.stack(others_here)[at]
        for name, seen in shown.items():
            sights[name] += right(seen, some)
        every += some
    accuracy: dict[str, float | None] = {"accuracy": mean(sights["own"]), "accuracy.grey": mean(sights["grey"])}
    accuracy["accuracy.other"] = mean(sights["other"]) if sights["other"] else None
    accuracy["accuracy.text"] = _by_text(every, text)
    blind = [value for name, value in accuracy.items() if name != "accuracy" and value is not None]
    counts = {"questions": len(every), **looked.counts("pictures", "without_questions")}
    return Scores({**accuracy, "seen": mean(sights["own"]) - max(blind), **counts}, settings={"dead": looked.dead})


def _others(model: Looks, looked: LookedAt, batch: int) -> Iterator[Tensor]:
    """Yield for each row the picture of the row half the data away; nothing where there is one row."""
    half = looked.count() // 2
    if half:
        turned = LookedAt(looked.dataset, looked.columns, looked.wanted, looked.names, looked.limit, half)
        for _, pictures in turned.batches(model, batch):
            yield from pictures[:, 0]


def _by_text(every: Sequence[Item], text: Callable[[Sequence[Item], Sequence[Item]], list[float]]) -> float | None:
    """Return how right a model of texts is that learns from half of the rows; None where a half is empty."""
    held = held_out(np.array([f"blind/{item.key}" for item in every]), 0.5)
    halves = [[item for item, inside in zip(every, held, strict=True) if inside == side] for side in (True, False)]
    if not all(halves):
        return None
    return mean([*text(*halves), *text(*reversed(halves))])
