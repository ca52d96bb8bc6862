"""Selective prediction: how wrong a model is where it answers what it is surest of only, and what abstaining is worth.

Shapes: n questions. `score` is how right an answer is, 0 .. 1; risk is the mean of 1 - score over the answered.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Curve(NamedTuple):
    """Risk against coverage: of the k surest answers, k = 1 .. n.

    Args:
        risk, coverage: (n,) float64; equally sure answers stand in no order: each counts as their mean.
        last: (n,) bool, where no equally sure answer follows: a threshold can be there.
    """

    risk: Tensor
    coverage: Tensor
    last: Tensor


def risk_coverage(confidence: Tensor, score: Tensor) -> Curve:
    """Return the curve of answers.

    Args:
        confidence: (n,), higher is surer.
        score: (n,).
    """
    _, place, counts = confidence.double().neg().unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, 1 - score.double())
    answered = torch.arange(1, len(score) + 1, dtype=torch.float64)
    risk = (sums / counts).repeat_interleave(counts).cumsum(0) / answered
    last = torch.zeros(len(score), dtype=torch.bool)
    last[counts.cumsum(0) - 1] = True
    return Curve(risk, answered / len(score), last)


def area(curve: Curve) -> float:
    """Return the area under risk over coverage (AURC; Geifman et al. 2019, arXiv 1805.08206): the mean of all k."""
    return float(curve.risk.mean())


def coverage_at(curve: Curve, risk: float) -> float:
    """Return the largest share of questions that can be answered at a risk of at most so much, by some threshold."""
    allowed = curve.coverage[curve.last & (curve.risk <= risk + 1e-12)]
    return float(allowed.max()) if len(allowed) else 0.0


def effective_reliability(score: Tensor, answered: Tensor, cost: float = 1.0) -> float:
    """Return the mean worth of a model that may abstain (Whitehead et al. 2022, arXiv 2204.13631, equation 4).

    Args:
        score: (n,); an answer is worth its score, less `cost` where that is 0.
        answered: (n,) bool; abstaining is worth nothing.
        cost: of a wrong answer.
    """
    return float(worth(score, cost)[answered].sum() / len(score))


def worth(score: Tensor, cost: float) -> Tensor:
    """Return what answering each question is worth: (n,) -> (n,) float64."""
    score = score.double()
    return torch.where(score > 0, score, torch.full_like(score, -cost))


def best_threshold(confidence: Tensor, score: Tensor, cost: float = 1.0) -> float:
    """Return the lowest confidence at which to answer, for the greatest effective reliability; inf to abstain always.

    Args:
        confidence, score: (n,).
        cost: of a wrong answer.
    """
    values, place = confidence.double().unique(return_inverse=True)
    sums = torch.zeros(len(values), dtype=torch.float64).index_add_(0, place, worth(score, cost))
    totals = sums.flip(0).cumsum(0).flip(0)  # of answering at this confidence and above
    best = int(totals.argmax())
    return float(values[best]) if totals[best] > 0 else float("inf")
