"""What each layer of a model knows of the classes: a linear probe and kNN at every site, on two reductions.

Shekhar et al. 2023 (arXiv 2304.13089) probe Vision Transformers site by site; the details here are ours. Each probe is
ridge regression on standardised features, so their scale does not matter; its penalty is decided on a part of the
training pictures that is held out by hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.training.data import shards
from granary.training.data.drawn import drawn
from granary.training.evaluation.features import BATCH, ROOM, Features, load
from granary.training.evaluation.heads import LinearHead, ridge_heads
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.knn import TEMPERATURE, predictions
from granary.training.evaluation.protocols.linear import PENALTIES, Best, probe
from granary.training.evaluation.scores import Real, Scores, Words
from granary.training.evaluation.site_features import Column, columns_of, in_room, joined_features, widths_of
from granary.training.evaluation.subjects import Subject
from granary.training.evaluation.tasks import PROBE, Task, changed, opened_sides, train_and_test, without_test


class LayersOptions(SplitOptions, frozen=True):
    """Options of the probes of all layers."""

    sites: Words = Field(
        (),
        description="kinds of sites: embed, norm1, attention, res1, norm2, mlp, block, norm of a Vision Transformer, "
        "stem and stage of others; default: all",
    )
    pictures: int | None = Field(
        None, ge=10, description="training pictures at most, and test pictures, drawn by hash; default: all"
    )
    penalties: Real = Field((1e2, 1e1, *PENALTIES), min_length=1, description="of ridge regression")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training ids that decides the penalty")
    k: int = Field(20, ge=1, description="neighbours of kNN")
    temperature: float = Field(TEMPERATURE, gt=0, description="T of their weights exp(cosine / T)")


class Probed(NamedTuple):
    """What a column gives: accuracies of the linear probe and of kNN, and the winner of the grid of the probe."""

    column: Column
    linear: float
    knn: float
    best: Best


def evaluate(measured: Measured, options: LayersOptions) -> Scores:
    """Probe the class token and the mean patch of every site on the training pictures, test on the others.

    Returns:
        linear, the accuracy at the site that is best on the held-out part, with its `.layer` and counts, and knn there;
        for every site `LAYER.KIND.REDUCTION.linear` with `.penalty` and `.validation`, and `LAYER.KIND.REDUCTION.knn`.
    """
    probed, task = probed_sites(load(measured), measured, options)
    best = max(probed, key=lambda one: (one.best.score, -one.best.loss))
    scores: dict[str, float | None] = {"linear": best.linear, "linear.layer": best.column.site.layer}
    scores |= {**task.counts("linear"), "knn": best.knn, "knn.k": options.k}
    for one in probed:
        scores |= {f"{one.column}.linear": one.linear, f"{one.column}.linear.penalty": one.best.point}
        scores |= {f"{one.column}.linear.validation": one.best.score, f"{one.column}.knn": one.knn}
    return Scores(scores, task.notes, {**task.settings, "chosen": str(best.column)})


PROTOCOL = Protocol(evaluate, LayersOptions, PROBE, BATCH)


def probed_sites(subject: Subject, measured: Measured, options: LayersOptions) -> tuple[list[Probed], Task]:
    """Return what every column of a model gives, and the task, whose features are those of the last few columns.

    The model runs again where the vectors of all columns would not fit into memory.

    Args:
        subject: on its device.
        measured, options: see `evaluate`.
    """
    columns = columns_of(subject, options.sites)
    widths = dict(zip(columns, widths_of(subject, columns, torch_device(measured.device)), strict=True))
    sides = opened_sides(measured, options.holdout, "layers")
    limits = [most for most in (measured.limit, options.pictures) if most]
    rows = sum(min(dataset.count, *limits) if limits else dataset.count for dataset, _ in sides)
    probed = list[Probed]()
    for group in in_room(widths, rows, ROOM):
        task = _task(subject, measured, options, group)
        start = 0
        for column in group:
            alone = changed(task, partial(_some, start, start + widths[column]))
            start += widths[column]
            probed.append(_probed(column, alone, torch_device(measured.device), options))
    return probed, task


def _some(start: int, end: int, x: Tensor) -> Tensor:
    return x[:, start:end]


def _task(subject: Subject, measured: Measured, options: LayersOptions, columns: Sequence[Column]) -> Task:
    """Return a task whose features are the vectors of some columns, side by side."""

    def read(dataset: shards.Dataset, part: str | None, classes: Sequence[str]) -> Features:
        some = drawn(dataset, options.pictures or dataset.count, measured.seed, "layers")
        return joined_features(subject, some, measured, columns, classes)

    return without_test(train_and_test(measured, options.holdout, why="layers", read=read), "layers")


def _probed(column: Column, task: Task, device: torch.device, options: LayersOptions) -> Probed:
    best, predicted = ridge_probe(task, options.penalties, device, options.validation)
    neighbours = predictions(task, [options.k], options.temperature, device)[options.k]
    linear, knn = (float((found == task.test.labels).double().mean()) for found in (predicted, neighbours))
    return Probed(column, linear, knn, best)


def ridge_probe(
    task: Task, penalties: Sequence[float], device: torch.device, validation: float = 0.1
) -> tuple[Best, Tensor]:
    """Return the best penalty and the classes (m,) of the test pictures by ridge regression.

    Args:
        task: whose features are one vector for each picture, as those of `changed`.
        penalties, device: the grid, and where it is searched.
        validation: share of the training ids that decides.
    """

    def fit(x: Tensor, y: Tensor, classes: int, grid: Sequence[float]) -> list[LinearHead]:
        return ridge_heads(x.to(device), y.to(device), classes, grid)

    return probe(task, [1], penalties, fit, validation)
