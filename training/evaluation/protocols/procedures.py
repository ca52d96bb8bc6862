"""The five tasks of VEDIT (arXiv 2410.03478) on the clips of videos: what a training of vedit tells of those it was
made for.

recognition, forecasting and classification are scored by accuracy; planning by SR, mAcc and mIoU as PDPP has them;
anticipation by the edit distance of the best of several candidates, as Ego4D has it.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.evaluation.features import load_whole
from granary.training.evaluation.procedures import Steps, anticipation_scores, planning_scores
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores
from granary.training.evaluation.told_clips import TellWindows, Told
from granary.training.methods.vedit import Vedit
from granary.training.models.registry import resolved

NOTES = (
    "most_common: the most frequent class of these windows, always; copy_last: the true class of the last clip seen.",
)


class ProcedureOptions(SplitOptions, frozen=True):
    """How clips are told."""

    candidates: int = Field(5, ge=1, description="answers, each from other noise; accuracy is that of their mean")
    temperature: float = Field(
        0.0, ge=0, description="of the softmax that the classes of a candidate are drawn from; 0: the likeliest"
    )


def evaluate(measured: Measured, options: ProcedureOptions) -> Scores:
    """Tell the clips of every window of the videos of a split. A limit counts videos.

    Returns:
        Of each kind that is told (step, verb, noun, task): KIND_accuracy with `.chance`, `.most_common` and, of
        forecasting, `.copy_last`; of planning KIND_success and KIND_iou too, `.pooled` over all windows; of
        anticipation instead KIND_edit with `.area` (AUED), `.one_candidate` and `.most_common`, lower is better. The
        number of windows, with that of videos, of those with too few clips, and of unreadable ones.

    Raises:
        UserError: the training is none of vedit; no video has a window.
    """
    method = load_whole(measured)
    if not isinstance(method, Vedit):
        raise UserError(f"model: {measured.model} tells no clips; give a training of vedit")
    teller = TellWindows(method, options.candidates, options.temperature, measured.seed, measured.batch, measured.dtype)
    split = measured.split or "test"
    dataset = shards.open_dataset(measured.data, teller.columns, split, options.holdout, "procedures", measured.columns)
    told = teller.told(dataset, measured.limit)
    if not told:
        why = teller.dead[0]["message"] if teller.dead else f"none has the {method.options.windows.least} clips"
        raise UserError(f"data: no video of {dataset.path} can be told: {why}")
    scores: dict[str, float | None] = {}
    for name, some in told.items():
        scores |= of_kind(name, some, method.options.task)
    windows = next(iter(told.values())).truth
    scores |= {"windows": len(windows), "windows.videos": teller.videos, "windows.too_few_clips": teller.few}
    scores["windows.unreadable"] = len(teller.dead)
    settings = {"model": resolved(measured.model), "data": dataset.path, "split": split, "dead": teller.dead}
    return Scores(scores, settings={**settings, "task": method.options.task})


PROTOCOL = Protocol(evaluate, ProcedureOptions, ("split", "batch", "limit", "seed"), 64, NOTES)


def of_kind(name: str, told: Told, task: str) -> dict[str, float | None]:
    """Return the scores of one kind; windows of which something is not said are left out and counted."""
    known = (told.truth >= 0).all(axis=1)
    truth, unsaid = told.truth[known], {f"{name}_{{}}.unsaid": int((~known).sum())}
    metric = "edit" if task == "anticipation" else "accuracy"
    details: dict[str, float | None] = {key.format(metric): value for key, value in unsaid.items()}
    if not len(truth):
        return {f"{name}_{metric}": None, **details}
    usual = np.full_like(truth, np.bincount(truth.ravel()).argmax())
    if task == "anticipation":
        return {**_edits(f"{name}_edit", told.candidates[known], truth, usual), **details}
    likeliest, classes = told.likeliest[known], told.classes
    scores: dict[str, float | None] = {
        f"{name}_accuracy": float((likeliest == truth).mean()),
        f"{name}_accuracy.chance": 1 / classes,
        f"{name}_accuracy.most_common": float((usual == truth).mean()),
    }
    if task == "forecasting":
        scores[f"{name}_accuracy.copy_last"] = float((told.last[known][:, None] == truth).mean())
    if task == "planning":
        plans = planning_scores(likeliest, truth)
        scores |= {f"{name}_success": plans["success"], f"{name}_success.chance": classes ** -truth.shape[1]}
        scores |= {f"{name}_iou": plans["iou"], f"{name}_iou.pooled": plans["iou_pooled"]}
    return {**scores, **details}


def _edits(name: str, candidates: Steps, truth: Steps, usual: Steps) -> dict[str, float | None]:
    """Return the edit distance of the best candidate, of the first alone, and of the most frequent class."""
    best = anticipation_scores(candidates, truth)
    return {
        name: best["edit"],
        f"{name}.area": best["edit_area"],
        f"{name}.one_candidate": anticipation_scores(candidates[:, :1], truth)["edit"],
        f"{name}.most_common": anticipation_scores(usual[:, None], truth)["edit"],
    }
