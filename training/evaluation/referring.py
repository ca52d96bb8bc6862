"""How right boxes and masks are that a text asks for, one of them, several or none.

After RefCOCO, gRefCOCO (Liu et al. 2023, arXiv 2306.00968) and VistaLLM (arXiv 2312.12423). Shapes: N answers, M
truths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from granary.training.evaluation.davis import Mask, region_similarity

Boxes = NDArray[np.float64]
THRESHOLDS = (0.7, 0.8, 0.9)


def box_iou(answers: Boxes, truths: Boxes, generalised: bool = False) -> NDArray[np.float64]:
    """Return intersection over union of all pairs of boxes.

    Args:
        answers: (N, 4) left, top, right, bottom.
        truths: (M, 4).
        generalised: less the share of the smallest box around both that neither covers (arXiv 1902.09630), -1 to 1.

    Returns:
        (N, M); 0 for two boxes without any area.
    """
    one, other = np.reshape(answers, (-1, 1, 4)), np.reshape(truths, (1, -1, 4))
    inside = np.clip(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0, None)
    both = inside.prod(axis=-1)
    union = (one[..., 2:] - one[..., :2]).prod(axis=-1) + (other[..., 2:] - other[..., :2]).prod(axis=-1) - both
    iou = both / np.where(union > 0, union, 1)
    if not generalised:
        return iou
    around = (np.maximum(one[..., 2:], other[..., 2:]) - np.minimum(one[..., :2], other[..., :2])).prod(axis=-1)
    return iou - (around - union) / np.where(around > 0, around, 1)


def box_f1(answers: Boxes, truths: Boxes, threshold: float = 0.5, generalised: bool = False) -> float:
    """Return F1 of boxes after matching one to one, the most similar pair first, above a threshold.

    Without any truth it is 1 for no answer, else 0. A sample is right where it is 1.

    Args:
        answers: (N, 4).
        truths: (M, 4).
        threshold: a pair must be above it.
        generalised: match by the generalised IoU, as the released program does.
    """
    iou = box_iou(answers, truths, generalised)
    count, total = 0, sum(iou.shape)
    if not iou.shape[1]:
        return float(not iou.shape[0])
    while iou.size and iou.max() > threshold:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou = np.delete(np.delete(iou, row, axis=0), column, axis=1)
        count += 1
    return 2 * count / total


class Answer(NamedTuple):
    """What was asked for and what was said, as masks (h, w) of the picture.

    Args:
        mask: the answer; empty where it names nothing.
        truth: the truth; empty where there is no such thing.
        readable: whether the answer is in the agreed form; one that is not is never right.
    """

    mask: Mask
    truth: Mask
    readable: bool = True


def mask_scores(answers: Iterable[Answer]) -> dict[str, float]:
    """Return the scores of generalised referring segmentation; NaN for what there is no sample of.

    `giou` is the mean IoU of samples, 1 for nothing where there is nothing; `ciou` all intersections over all unions;
    `no_target` the share of samples without a target whose answer is empty; `target` that of samples with one whose
    answer is not; `precision_0.7` the share of samples with a target whose IoU is above 0.7; `targets_miou` the mean
    IoU of samples with a target.
    """
    rows = list(answers)
    ious = np.array([_iou(row) for row in rows])
    targeted = np.array([bool(row.truth.any()) for row in rows], bool)
    said = np.array([bool(row.mask.any()) for row in rows], bool)
    readable = np.array([row.readable for row in rows], bool)
    both, union = (sum(int(f(row.mask, row.truth).sum()) for row in rows) for f in (np.logical_and, np.logical_or))
    scores = {
        "giou": _mean(ious),
        "ciou": both / union if union else float("nan"),
        "no_target": _mean((~said & readable)[~targeted]),
        "target": _mean((said & readable)[targeted]),
        "targets_miou": _mean(ious[targeted]),
    }
    return scores | {f"precision_{value}": _mean(ious[targeted] > value) for value in THRESHOLDS}


def _iou(answer: Answer) -> float:
    return region_similarity(answer.mask, answer.truth) if answer.readable else 0.0


def _mean(values: NDArray[np.float64] | NDArray[np.bool_] | Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
