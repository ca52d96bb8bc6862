"""POPE: is an object in the picture? Yes or no, asked of a generator, or by a bound on the score of a pair.

Li et al. 2023 (arXiv 2305.10355). The data are the column `polls` of a run: kind, object, question and answer of each.
A dual encoder says yes where a sentence on the object scores above a bound; the bound is set on some of the pictures,
drawn by hash, and the scores are those of the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.splits import held_out
from granary.training.evaluation.answers import normalised
from granary.training.evaluation.generators import GeneratedPairs, Generator
from granary.training.evaluation.looked import LookedAt, listed, own_logits
from granary.training.evaluation.mentions import best_bound, polled
from granary.training.evaluation.pairs import PairScorer, load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions, SplitOptions
from granary.training.evaluation.scores import Scores

TOKENS = 8  # of an answer
SENTENCE = "a photo with {} in it."
NOTES = ("accuracy, f1 and yes_rate are over all polls, and `.KIND` over those whose absent objects were chosen so.",)


class PopeOptions(SplitOptions, ScorerOptions, frozen=True):
    """Options of POPE."""

    column: str = Field("polls", description="column of the polls")
    sentence: str = Field(SENTENCE, description="of an object, {}, that a dual encoder scores")
    way: Literal["answer", "rank"] = Field(
        "answer", description="of a generator; answer: the first word that it says; rank: whether yes or no is likelier"
    )
    tune: float = Field(0.3, gt=0, lt=1, description="share of the pictures that sets a dual encoder's bound")


class Poll(NamedTuple):
    """A question whether an object is in a picture."""

    kind: str
    object: str
    question: str
    truth: bool


class Answered(NamedTuple):
    """What was said: `value` of a generator is 1 for yes, 0 for no, NaN for neither; else the score of the pair."""

    key: str
    poll: Poll
    value: float


def evaluate(measured: Measured, options: PopeOptions) -> Scores:
    """Ask all polls; without a split all rows are taken.

    Returns:
        accuracy, precision, recall, f1, yes_rate, each by kind too, with the chance of accuracy; yes_rate.truth, the
        share of polls whose answer is yes; the number of polls and of answers that are neither yes nor no, which count
        as no; bound of a dual encoder; the number of pictures, of those without polls, and of unreadable ones.
    """
    needs, column = ("image", options.column), options.column
    if "{}" not in options.sentence:
        raise UserError(f"options.sentence: {options.sentence!r} is not right; write {{}} for the object")
    dataset = shards.open_dataset(measured.data, needs, measured.split, options.holdout, "POPE", measured.columns)
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)
    looked = LookedAt(dataset, [column], lambda row: listed(row[column]), limit=measured.limit)
    answered = list[Answered]()
    for rows, pictures in looked.batches(model, measured.batch):
        answered += _answered(model, pictures[:, 0], rows, options)
    bounds = {} if isinstance(model, GeneratedPairs) else {"bound": _bound(answered, options.tune)}
    if bounds:
        answered = [one for one in answered if not _tunes(one, options.tune)]
    scores = of_polls(answered, bounds.get("bound", 0.5)) | bounds
    return Scores({**scores, **looked.counts("pictures", "without_polls")}, settings={"dead": looked.dead})


PROTOCOL = Protocol(evaluate, PopeOptions, batch=32, notes=NOTES)


def polls_of(row: Part, column: str) -> list[Poll]:
    """Return the polls of a row. Raises UserError where one lacks a field, or its answer is neither yes nor no."""
    polls = []
    for value in listed(row[column]):
        fields = value if isinstance(value, dict) else {}
        answer, question = normalised(str(fields.get("answer") or "")), fields.get("question")
        if answer not in ("yes", "no") or not isinstance(question, str):
            raise UserError(f"data: the column {column} has {value!r}; a poll has question, and answer yes or no")
        polls.append(Poll(fields.get("kind") or "", fields.get("object") or "", question, answer == "yes"))
    return polls


def _answered(model: PairScorer, pictures: Tensor, rows: Sequence[Part], options: PopeOptions) -> list[Answered]:
    """Return what a model says of the polls of rows, whose pictures are prepared, (N, ...)."""
    asked = [(at, poll) for at, row in enumerate(rows) for poll in polls_of(row, options.column)]
    at, polls = [at for at, _ in asked], [poll for _, poll in asked]
    if isinstance(model, GeneratedPairs):
        says = said_yes if options.way == "answer" else likelier_yes
        values = says(model.generator, pictures[at], [poll.question for poll in polls])
    else:
        unknown = next((poll for poll in polls if not poll.object), None)
        if unknown:
            raise UserError(f"data: the poll {unknown.question!r} names no object, which a dual encoder is to score")
        sentences = [[options.sentence.replace("{}", poll.object)] for poll in polls]
        values = own_logits(model, pictures, at, sentences)[:, 0].tolist()
    return [Answered(rows[n]["key"], poll, value) for n, poll, value in zip(at, polls, values, strict=True)]


def said_yes(generator: Generator, pictures: Tensor, questions: Sequence[str]) -> list[float]:
    """Return 1 for each answer that begins with yes, 0 for no, NaN for another one.

    Args:
        generator: is asked.
        pictures: (n, 3, S, S), prepared.
        questions: n.
    """
    first = [normalised(answer).split(" ")[0] for answer in generator.answer(pictures, questions, TOKENS)]
    return [{"yes": 1.0, "no": 0.0}.get(word, float("nan")) for word in first]


def likelier_yes(generator: Generator, pictures: Tensor, questions: Sequence[str]) -> list[float]:
    """Return 1 where yes is likelier than no, 0 where no is, NaN where both are alike; arguments as in `said_yes`."""
    both = generator.own_loglikelihood(pictures, [("yes", "no")] * len(questions), questions)
    return [float("nan") if yes == no else float(yes > no) for yes, no in both.tolist()]


def _tunes(one: Answered, share: float) -> bool:
    return bool(held_out(np.array([f"pope/{one.key}"]), share)[0])


def _bound(answered: Sequence[Answered], share: float) -> float:
    """Return the score from which on a dual encoder says yes. Raises UserError where no picture sets or tests it."""
    tuning = [one for one in answered if _tunes(one, share)]
    if not tuning or len(tuning) == len(answered):
        raise UserError(
            f"data: {len(answered)} polls are too few to set a dual encoder's bound on some and test others"
        )
    return best_bound(torch.tensor([one.value for one in tuning]), torch.tensor([one.poll.truth for one in tuning]))


def of_polls(answered: Sequence[Answered], bound: float = 0.5) -> dict[str, float | None]:
    """Return the scores of answers: yes from a value on; NaN is no."""
    by_kind = defaultdict[str, list[Answered]](list)
    for one in answered:
        by_kind[one.poll.kind].append(one)
    scores = dict(_polled(answered, bound))
    share = sum(one.poll.truth for one in answered) / len(answered)
    details: dict[str, float | None] = {"accuracy.chance": 0.5, "yes_rate.truth": share}
    for kind, some in sorted(by_kind.items()):
        if kind:
            details |= {f"{name}.{kind}": value for name, value in _polled(some, bound).items()}
    unsure = sum(one.value != one.value for one in answered)
    return scores | details | {"polls": len(answered), "polls.neither": unsure}


def _polled(answered: Sequence[Answered], bound: float) -> dict[str, float | None]:
    yes = torch.tensor([one.value >= bound for one in answered])
    return polled(yes, torch.tensor([one.poll.truth for one in answered]))
