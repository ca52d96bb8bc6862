"""How right the steps of a procedure are that a model says: planning and anticipation, as PDPP and Ego4D score them.

Shapes: n sequences of T steps, K candidates for each, Z steps ahead. Steps are numbers of classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Values = NDArray[np.float64]


def success_rate(predicted: Steps, truth: Steps) -> float:
    """Return SR, the share of sequences (n, T) whose steps are all right."""
    return float((predicted == truth).all(axis=1).mean())


def mean_accuracy(predicted: Steps, truth: Steps) -> float:
    """Return mAcc, the share of steps that are right, over all of (n, T)."""
    return float((predicted == truth).mean())


def sequence_iou(predicted: Steps, truth: Steps) -> float:
    """Return mIoU by sequence: the mean over (n, T) of shared over all steps as sets, order and number put aside."""
    return float(np.mean([_iou(set(one), set(other)) for one, other in _pairs(predicted, truth)]))


def pooled_iou(predicted: Steps, truth: Steps, batch: int | None = None) -> float:
    """Return mIoU of older work: the sets are those of a whole batch of sequences (n, T), which makes it larger.

    Args:
        predicted, truth: (n, T).
        batch: sequences that are pooled, on which the figure depends; by default all.
    """
    size = batch or len(predicted)
    pools = ((predicted[start : start + size], truth[start : start + size]) for start in range(0, len(truth), size))
    return float(np.mean([_iou(set(one.ravel().tolist()), set(other.ravel().tolist())) for one, other in pools]))


def planning_scores(predicted: Steps, truth: Steps) -> dict[str, float]:
    """Return `success`, `accuracy`, `iou` by sequence and `iou_pooled` over all of sequences (n, T)."""
    return {
        "success": success_rate(predicted, truth),
        "accuracy": mean_accuracy(predicted, truth),
        "iou": sequence_iou(predicted, truth),
        "iou_pooled": pooled_iou(predicted, truth),
    }


def prefix_distances(candidates: Steps, truth: Steps) -> Steps:
    """Return the edit distance (Levenshtein) of the first z steps of candidates and truth, for each z from 1 to Z.

    The table of the whole sequences holds those of all prefixes on its diagonal.

    Args:
        candidates: (n, K, Z).
        truth: (n, Z).

    Returns:
        (n, K, Z).
    """
    steps = truth.shape[1]
    above: list[Steps] = [np.full(candidates.shape[:2], place) for place in range(steps + 1)]
    diagonal = []
    for row in range(1, steps + 1):
        now = [np.full(candidates.shape[:2], row)]
        for column in range(1, steps + 1):
            differs = candidates[:, :, row - 1] != truth[:, None, column - 1]
            now.append(np.minimum(np.minimum(above[column], now[-1]) + 1, above[column - 1] + differs))
        diagonal.append(now[row])
        above = now
    return np.stack(diagonal, axis=2)


def edit_scores(candidates: Steps, truth: Steps) -> Values:
    """Return ED@z for z = 1 .. Z, (Z,): the distance of the best of K candidates over z, mean over the sequences.

    The best one is chosen for each z. Lower is better; more candidates are never worse.

    Args:
        candidates: (n, K, Z).
        truth: (n, Z).
    """
    best = prefix_distances(candidates, truth).min(axis=1)
    return np.asarray(best.mean(axis=0) / np.arange(1, truth.shape[1] + 1), np.float64)


def area_under(scores: Values) -> float:
    """Return AUED: the area under ED@z (Z,) from z = 1 to Z by trapezoids, over Z - 1. Z is 2 or more."""
    return float((scores[1:] + scores[:-1]).sum() / 2 / (len(scores) - 1))


def anticipation_scores(candidates: Steps, truth: Steps) -> dict[str, float]:
    """Return `edit`, ED@Z, and `edit_area`, AUED, of candidates (n, K, Z) for truths (n, Z)."""
    scores = edit_scores(candidates, truth)
    return {"edit": float(scores[-1]), "edit_area": area_under(scores)}


def _pairs(predicted: Steps, truth: Steps) -> list[tuple[list[int], list[int]]]:
    return list(zip(predicted.tolist(), truth.tolist(), strict=True))


def _iou(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)
