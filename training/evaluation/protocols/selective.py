"""Selective prediction: a generator answers what it is sure of, by the log probability of its answer, or abstains.

Risk over coverage (Geifman et al. 2019, arXiv 1805.08206) and effective reliability (Whitehead et al. 2022, arXiv
2204.13631): the confidence from which on it answers is set on some of the pictures, drawn by hash, the scores are those
of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field

from granary.curation.errors import UserError
from granary.training.data.splits import held_out
from granary.training.evaluation.abstention import (
    area,
    best_threshold,
    coverage_at,
    effective_reliability,
    risk_coverage,
)
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.questions import (
    Answer,
    QuestionOptions,
    answered,
    asked,
    candidates_of,
    looked_at,
    opened,
)
from granary.training.evaluation.scores import Real, Scores

NOTES = (
    "aurc: mean risk over all coverages; .chance: of confidence that says nothing, .best: of one that knows what is "
    "right. coverage@R: share of questions that can be answered at a risk of R percent.",
    "reliability_C: a right answer is worth its score, a wrong one -C, none 0; .always: of answering everything.",
)


class SelectiveOptions(QuestionOptions, frozen=True):
    """Options of selective prediction."""

    risks: Real = Field((1, 5, 10, 20), min_length=1, description="percent, of which coverage is given")
    costs: Real = Field((1, 10, 100), min_length=1, description="of a wrong answer")
    tune: float = Field(0.3, gt=0, lt=1, description="share of the pictures that sets the confidence to answer from")


def evaluate(measured: Measured, options: SelectiveOptions) -> Scores:
    """Ask all questions, and see whether the model knows which it answers wrong; without a split all rows are taken.

    Returns:
        risk; aurc with `.chance` and `.best`; coverage@R for each risk; reliability_C for each cost with `.always` and
        `.coverage`; the number of questions, of pictures, of those without questions, and of unreadable ones.

    Raises:
        UserError: there are too few questions to set a confidence on some and test others.
    """
    dataset = opened(measured, options, "selective prediction")
    generator = load_generator(measured.model, measured.device, measured.dtype)
    looked, candidates = looked_at(dataset, options, measured.limit), candidates_of(dataset, options)
    answers = list[Answer]()
    for rows, pictures in looked.batches(generator, measured.batch):
        at, questions = asked(rows, options)
        answers += answered(generator, pictures[at, 0], questions, options, candidates, sure=True)
    scores = {**curves(answers, options.risks), **reliabilities(answers, options.costs, options.tune)}
    counts = {"questions": len(answers), **looked.counts("pictures", "without_questions")}
    return Scores({**scores, **counts}, settings={"dead": looked.dead})


PROTOCOL = Protocol(evaluate, SelectiveOptions, batch=32, notes=NOTES)


def curves(answers: Sequence[Answer], risks: Sequence[float]) -> dict[str, float | None]:
    """Return risk, area under risk over coverage, and coverage at risks in percent."""
    score = torch.tensor([answer.score for answer in answers], dtype=torch.float64)
    curve = risk_coverage(torch.tensor([answer.confidence for answer in answers]), score)
    risk = float((1 - score).mean())
    found: dict[str, float | None] = {"risk": risk, "aurc": area(curve), "aurc.chance": risk}
    found["aurc.best"] = area(risk_coverage(score, score))
    return found | {f"coverage@{percent:g}": coverage_at(curve, percent / 100) for percent in risks}


def reliabilities(answers: Sequence[Answer], costs: Sequence[float], share: float) -> dict[str, float | None]:
    """Return effective reliability at each cost. Raises UserError where no picture sets or tests the confidence."""
    tuning = torch.from_numpy(held_out(np.array([f"selective/{answer.question.key}" for answer in answers]), share))
    if tuning.all() or not tuning.any():
        raise UserError(f"data: {len(answers)} questions are too few to set a confidence on some and test others")
    score = torch.tensor([answer.score for answer in answers], dtype=torch.float64)
    confidence = torch.tensor([answer.confidence for answer in answers], dtype=torch.float64)
    every, found = torch.ones(int((~tuning).sum()), dtype=torch.bool), dict[str, float | None]()
    for cost in costs:
        bound = best_threshold(confidence[tuning], score[tuning], cost)
        says, name = confidence[~tuning] >= bound, f"reliability_{cost:g}"
        found[name] = effective_reliability(score[~tuning], says, cost)
        found[f"{name}.always"] = effective_reliability(score[~tuning], every, cost)
        found[f"{name}.coverage"] = float(says.double().mean())
    return found
