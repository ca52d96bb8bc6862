"""VQA: questions about pictures, answered by a generator, and counted right as VQAv2 counts (arXiv 1612.00837)."""

from __future__ import annotations

from granary.training.evaluation.answers import vqa_accuracy
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.questions import (
    Answer,
    QuestionOptions,
    answered,
    asked,
    candidates_of,
    looked_at,
    mean,
    mean_scores,
    most_frequent,
    opened,
)
from granary.training.evaluation.scores import Scores

NOTES = (
    "accuracy.prior: of the most frequent answer to the questions of each kind in these data, whatever the picture.",
)


def evaluate(measured: Measured, options: QuestionOptions) -> Scores:
    """Ask all questions; without a split all rows are taken. A limit counts pictures.

    Returns:
        accuracy with that of each kind and `.prior`; the number of questions, and of different answers that were given;
        the number of pictures, of those without questions that have an answer, and of unreadable ones.
    """
    dataset = opened(measured, options, "VQA")
    generator = load_generator(measured.model, measured.device, measured.dtype)
    looked, candidates, answers = looked_at(dataset, options, measured.limit), candidates_of(dataset, options), []
    for rows, pictures in looked.batches(generator, measured.batch):
        at, questions = asked(rows, options)
        answers += answered(generator, pictures[at, 0], questions, options, candidates)
    counts = looked.counts("pictures", "without_questions")
    return Scores({**of_answers(answers), **counts}, settings={"dead": looked.dead})


PROTOCOL = Protocol(evaluate, QuestionOptions, batch=32, notes=NOTES)


def of_answers(answers: list[Answer]) -> dict[str, float | None]:
    """Return how right answers are, and how right it is to say the most frequent answer of the kind always."""
    questions = [answer.question for answer in answers]
    usual = most_frequent(questions)
    prior = mean(vqa_accuracy(usual[question.kind], question.people) for question in questions)
    return {
        **mean_scores(answers, "accuracy"),
        "accuracy.prior": prior,
        "questions": len(answers),
        "questions.different_answers": len({answer.text for answer in answers}),
    }
