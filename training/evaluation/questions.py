"""Questions about pictures with the answers of people, and what a generator answers.

The data are the column `questions` of a run: id, kind, question, answer and answers of each, as VQAv2 has them.
Shapes: N pictures, Q questions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.passes import undecoded
from granary.training.evaluation.answers import normalised, vqa_accuracy
from granary.training.evaluation.looked import LookedAt, listed
from granary.training.evaluation.protocol import Measured, SplitOptions
from granary.training.evaluation.scores import Words

MOST = 100  # answers of a kind that are ranked
Candidates = Mapping[str, Sequence[str]]  # kind -> answers


class Question(NamedTuple):
    """A question.

    Args:
        key: of its row.
        kind: what sort it is, "" where nobody says.
        text: what is asked.
        people: their answers, one or more.
    """

    key: str
    kind: str
    text: str
    people: Sequence[str]


class Answer(NamedTuple):
    """What a model answers: how right it is, 0 .. 1, and its log probability, NaN where nobody asked for it."""

    question: Question
    text: str
    score: float
    confidence: float


class QuestionOptions(SplitOptions, frozen=True):
    """Options of protocols that ask questions."""

    column: str = Field("questions", description="column of the questions")
    kinds: Words = Field((), description="kinds of questions that are asked; default: all")
    tokens: int = Field(16, ge=1, description="of an answer at most")
    way: Literal["answer", "rank"] = Field(
        "answer",
        description=f"answer: the likeliest token after another; rank: the likeliest of the {MOST} most frequent "
        "answers to questions of the kind in the data",
    )


def questions_of(row: Part, options: QuestionOptions) -> list[Question]:
    """Return the questions of a row that have an answer. Raises UserError where one is none."""
    found = []
    for value in listed(row[options.column]):
        fields = value if isinstance(value, dict) else {}
        text, answer = fields.get("question"), fields.get("answer")
        people = [one for one in fields.get("answers") or [answer] if one]
        if not isinstance(text, str):
            raise UserError(
                f"data: the column {options.column} has {value}; a question has question, answer and answers"
            )
        kind = fields.get("kind") or ""
        if people and (not options.kinds or kind in options.kinds):
            found.append(Question(row["key"], kind, text, people))
    return found


def opened(measured: Measured, options: QuestionOptions, why: str) -> shards.Dataset:
    """Open the data of a protocol that asks questions. Raises UserError."""
    needs = ("image", options.column)
    return shards.open_dataset(measured.data, needs, measured.split, options.holdout, why, measured.columns)


def looked_at(dataset: shards.Dataset, options: QuestionOptions, limit: int | None) -> LookedAt:
    """Return the rows that have questions."""
    return LookedAt(dataset, [options.column], lambda row: questions_of(row, options), limit=limit)


def candidates_of(dataset: shards.Dataset, options: QuestionOptions) -> Candidates | None:
    """Return the most frequent answers of each kind, the first of equally frequent ones by name; None to rank none."""
    if options.way == "answer":
        return None
    counts = defaultdict[str, Counter[str]](Counter)
    for row in undecoded(dataset, [options.column]):
        for question in questions_of(row, options):
            counts[question.kind].update(map(normalised, question.people))
    return {
        kind: [answer for answer, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:MOST]]
        for kind, counted in counts.items()
    }


def asked(rows: Sequence[Part], options: QuestionOptions) -> tuple[list[int], list[Question]]:
    """Return the questions of rows, and the place of each one's row."""
    both = [(at, question) for at, row in enumerate(rows) for question in questions_of(row, options)]
    return [at for at, _ in both], [question for _, question in both]


class Answers(Protocol):
    """What answers questions about what it is shown: a `Generator`, or one of videos."""

    def answer(self, pictures: Tensor, questions: Sequence[str], tokens: int = 16) -> list[str]:
        """Return the answer to the question of each picture."""

    def loglikelihood(self, pictures: Tensor, texts: Sequence[str], question: str | None = None) -> Tensor:
        """Return the log probabilities of every text given every picture, (N, T)."""

    def own_loglikelihood(
        self, pictures: Tensor, texts: Sequence[Sequence[str]], questions: Sequence[str] | None = None
    ) -> Tensor:
        """Return the log probabilities of texts of a picture's own, (N, T)."""


def answered(
    generator: Answers,
    pictures: Tensor,
    questions: Sequence[Question],
    options: QuestionOptions,
    candidates: Candidates | None = None,
    sure: bool = False,
) -> list[Answer]:
    """Return what a generator answers.

    Args:
        generator: is asked.
        pictures: (Q, 3, S, S), prepared: one for each question; of videos (Q, T, S, S, 3).
        questions: Q.
        options: how.
        candidates: of `candidates_of`.
        sure: say how sure it is too.
    """
    texts = [question.text for question in questions]
    if candidates is None:
        said = generator.answer(pictures, texts, options.tokens)
    else:
        said = list(_ranked(generator, pictures, questions, candidates))
    scores = [float("nan")] * len(said)
    if sure:
        scores = generator.own_loglikelihood(pictures, [[text] for text in said], texts)[:, 0].tolist()
    answers = zip(questions, said, scores, strict=True)
    return [Answer(question, text, vqa_accuracy(text, question.people), score) for question, text, score in answers]


def _ranked(
    generator: Answers, pictures: Tensor, questions: Sequence[Question], candidates: Candidates
) -> Iterator[str]:
    """Yield the likeliest candidate of each question."""
    for picture, question in zip(pictures, questions, strict=True):
        texts = candidates[question.kind]
        yield texts[int(generator.loglikelihood(picture[None], texts, question.text)[0].argmax())]


def mean_scores(answers: Sequence[Answer], name: str) -> dict[str, float | None]:
    """Return the mean score of answers, and those of each kind as details."""
    kinds = defaultdict[str, list[float]](list)
    for answer in answers:
        kinds[answer.question.kind].append(answer.score)
    details = {f"{name}.{kind}": sum(scores) / len(scores) for kind, scores in sorted(kinds.items()) if kind}
    return {name: mean([answer.score for answer in answers]), **details}


def mean(values: Iterable[float]) -> float:
    """Return the mean of one or more values."""
    listed = list(values)
    return sum(listed) / len(listed)


def most_frequent(questions: Sequence[Question]) -> dict[str, str]:
    """Return the most frequent answer to the questions of each kind, the first by name of equally frequent ones."""
    counts = defaultdict[str, Counter[str]](Counter)
    for question in questions:
        counts[question.kind].update(map(normalised, question.people))
    return {kind: min(counted, key=lambda answer: (-counted[answer], answer)) for kind, counted in counts.items()}
