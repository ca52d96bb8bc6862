"""Accuracy of every group of pictures, and of the worst: groups are the values of some columns together.

Sagawa et al. 2020 (arXiv 1911.08731): of a model that goes by a shortcut the mean over pictures is high, and that of
the few pictures that contradict it low. What is measured is the classifier of a training, or a probe of any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.evaluation.factors import Accuracy, Value, accuracy_by_factor
from granary.training.evaluation.features import BATCH
from granary.training.evaluation.longtail import group_accuracy
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.by_factor import columns_of, dataset_of, probed
from granary.training.evaluation.protocols.classifier import classified
from granary.training.evaluation.scores import Scores, Words
from granary.training.evaluation.tasks import PROBE, train_and_test

WORST = "worst_group"
NOTES = (f"{WORST}.low and .high, and those of each group: 95 % interval (Wilson) of a group that was named before.",)


class GroupOptions(SplitOptions, frozen=True):
    """Options of accuracy by group."""

    by: Words = Field(
        (), description="columns of the test shards whose values together make a group, written label,environment"
    )
    classifier: Literal["own", "ridge", "knn"] = Field(
        "own", description="own: that of the training; ridge or knn: a probe that is taught the labels, as for factors"
    )


class Answers(NamedTuple):
    """What a classifier says of the labelled pictures of a dataset.

    Args:
        dataset: of the pictures.
        ids: n.
        predicted, labels: (n,) int64.
        counts: details of the accuracy.
        notes, settings: as in `Scores`.
    """

    dataset: shards.Dataset
    ids: list[str]
    predicted: Tensor
    labels: Tensor
    counts: Mapping[str, float | None]
    notes: Sequence[str]
    settings: Mapping[str, object]


def evaluate(measured: Measured, options: GroupOptions) -> Scores:
    """Classify the labelled pictures of a split, and count how often that is right in each group.

    Returns:
        worst_group, the lowest accuracy of a group, with `.low`, `.high` and `.pictures`; accuracy over all pictures,
        with `.mean_of_groups` and what the classifier says of its classes; `COLUMN=VALUE,COLUMN=VALUE` of every group
        with the same details. Pictures without a value in one of the columns are in no group, and left out.

    Raises:
        UserError: no columns are given, or they are not there or empty; the training has no classifier.
    """
    if not options.by:
        raise UserError(
            "options.by: missing; give the columns that make a group, for example --options.by label,environment"
        )
    answers = _own(measured, options) if options.classifier == "own" else _probe(measured, options)
    dataset = answers.dataset
    missing = [name for name in options.by if name not in dataset.columns]
    if missing:
        raise UserError(f"options.by: {dataset.path} has no column {missing[0]!r}")
    groups = groups_of(columns_of(dataset, answers.ids, options.by))
    inside = np.array([name is not None for name in groups])
    if not inside.any():
        raise UserError(f"options.by: no picture has a value in {' and '.join(options.by)}")
    left = int((~inside).sum())
    notes = [f"{left:,} pictures have no value in {' or '.join(options.by)} and are in no group"] if left else []
    kept = [name for name in groups if name is not None]
    scores, worst = by_group(answers.predicted.numpy()[inside], answers.labels.numpy()[inside], kept)
    settings = {**answers.settings, "by": list(options.by), "worst_group": worst}
    counts = {**answers.counts, "accuracy.test": len(kept)}
    return Scores({**scores, **counts}, [*answers.notes, *notes], settings)


PROTOCOL = Protocol(evaluate, GroupOptions, PROBE, BATCH, NOTES)


def groups_of(columns: Mapping[str, Sequence[Value]]) -> list[str | None]:
    """Return the group of every row, `COLUMN=VALUE,COLUMN=VALUE`; None where a value is missing.

    Args:
        columns: name -> n values; one column or more.
    """
    rows = zip(*columns.values(), strict=True)
    return [
        None if None in row else ",".join(f"{name}={value}" for name, value in zip(columns, row, strict=True))
        for row in rows
    ]


def by_group(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], groups: Sequence[str]
) -> tuple[dict[str, float | None], str]:
    """Return the scores of groups, and the worst group: of equal ones that of most pictures.

    Args:
        predicted, labels: (n,), at least one.
        groups: n names.
    """
    means = group_accuracy(predicted, labels, groups)
    rows = accuracy_by_factor({"group": groups}, predicted == labels)[1:]
    worst = min(rows, key=lambda row: (row.accuracy, -row.samples))
    scores = dict(_told(WORST, worst))
    scores |= {"accuracy": means["all"] / 100, "accuracy.mean_of_groups": means["groups"] / 100}
    scores["accuracy.groups"] = len(rows)
    for row in rows:
        scores |= _told(str(row.value), row)
    return scores, str(worst.value)


def _told(name: str, row: Accuracy) -> dict[str, float | None]:
    """Return an accuracy under a name, with its interval and the number of its pictures."""
    return {name: row.accuracy, f"{name}.low": row.low, f"{name}.high": row.high, f"{name}.pictures": row.samples}


def _own(measured: Measured, options: GroupOptions) -> Answers:
    """Return the answers of the training's own classifier on a split of the data, or of the other run."""
    where = replace(measured, data=measured.test_data or measured.data)
    said = classified(where, options.holdout, "ridge, by --options.classifier")
    found, counts = said.logits, {"accuracy.chance": 1 / len(said.classes), "accuracy.classes": len(said.classes)}
    predicted = found.cls[:, 0].argmax(dim=1)
    return Answers(said.dataset, found.ids, predicted, found.labels, counts, said.notes, said.settings)


def _probe(measured: Measured, options: GroupOptions) -> Answers:
    """Return the answers of a probe that is taught the labels of training pictures."""
    task = train_and_test(measured, options.holdout, why="accuracy by group")
    task, predicted = probed(task, "knn" if options.classifier == "knn" else "ridge", torch_device(measured.device))
    dataset, found = dataset_of(task, measured.columns), task.test
    return Answers(dataset, found.ids, predicted.cpu(), found.labels, task.counts(), task.notes, dict(task.settings))
