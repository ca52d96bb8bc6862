"""Linear probes on frozen features: SGD over a grid of learning rates and layers (DINOv2, arXiv 2304.07193, B.3), and
for small data logistic regression by L-BFGS or ridge regression in closed form over a grid of penalties. An MLP in the
place of the linear head shows what the features hold beyond that (arXiv 2304.12210).

The grid is decided on a part of the training pictures that is held out by hash; test pictures decide nothing.
Shapes: n pictures, D features, K classes, G points of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data.shards import held_out
from granary.training.evaluation.features import BATCH, Features
from granary.training.evaluation.heads import Head, logistic_heads, mlp_heads, ridge_heads, sgd_heads
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Real, Scores, Whole, accuracies
from granary.training.evaluation.tasks import PROBE, Task, train_and_test, without_test

LRS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)  # for a batch of 256
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # per picture, on standardised features
MLP_LRS = (1e-4, 3e-4, 1e-3, 3e-3)
SMALL = 1_000_000  # pictures times classes up to which L-BFGS is used

Solver = Literal["auto", "sgd", "lbfgs", "ridge"]


@dataclass(frozen=True)
class Input:
    """What a head reads: the vectors of the last so many layers, and whether the last mean patch follows them."""

    layers: int
    with_mean: bool

    def of(self, features: Features) -> Tensor:
        """Return (n, D)."""
        cls = features.cls[:, -self.layers :].flatten(1)
        return torch.cat([cls, features.mean], dim=1) if self.with_mean and features.mean is not None else cls


class LinearOptions(SplitOptions, frozen=True):
    """Options of the linear probe."""

    FORMER: ClassVar[Mapping[str, str]] = {"rates": "lrs"}

    head: Literal["linear", "mlp"] = Field(
        "linear",
        description="mlp: one hidden layer, by AdamW, as it was after its best pass on a tenth of what it is taught",
    )
    hidden: int = Field(512, ge=1, description="units of the MLP's hidden layer")
    mlp_lrs: Real = Field(MLP_LRS, description="learning rates of the MLP")
    solver: Solver = Field(
        "auto",
        description="sgd: every point of the grid at once, as DINOv2; lbfgs: logistic regression; ridge: regression to "
        "one-hot labels; auto: lbfgs up to a million pictures times classes, sgd beyond",
    )
    layers: Whole = Field(
        (1, 4),
        description="numbers of last layers whose vectors are joined; each also with the mean patch, where there is a "
        "class token",
    )
    lrs: Real = Field(LRS, description="learning rates of sgd for a batch of 256; scaled to its batch of 128")
    penalties: Real = Field(
        PENALTIES,
        description="of lbfgs and ridge, on standardised features: half the penalty times the sum of squares, added to "
        "the mean loss",
    )
    iterations: int = Field(12_500, description="of sgd; of the MLP at most; at most 100 for each penalty of lbfgs")
    validation: float = Field(
        0.1,
        description="share of the training ids that decides the grid; the winner of lbfgs and ridge is trained again "
        "on all training pictures, that of sgd and an MLP stay as they are",
    )


def evaluate(measured: Measured, options: LinearOptions) -> Scores:
    """Train linear classifiers on the training pictures, choose one on the held-out part, test it.

    Returns:
        accuracy with `.mean_per_class`, `.chance`, `.validation` and the chosen `.layers`, `.with_mean`,
        `.learning_rate` or `.penalty`, and counts.
    """
    _check(options)
    task = train_and_test(measured, options.holdout, max(options.layers), "the linear probe")
    task = without_test(task, "the linear probe")
    solver = _chosen_solver(options, task)
    grid = {"mlp": options.mlp_lrs, "sgd": options.lrs}.get(solver, options.penalties)
    rates = solver in ("mlp", "sgd")
    fit = _solver(solver, options, measured.seed, torch_device(measured.device))
    best, predicted = probe(task, options.layers, grid, fit, options.validation, refit=not rates)
    chosen: dict[str, float] = {"layers": best.input.layers, "with_mean": int(best.input.with_mean)}
    chosen |= {"learning_rate" if rates else "penalty": best.point}
    scores: dict[str, float | None] = {**accuracies(predicted, task.test.labels), "accuracy.validation": best.score}
    scores |= {f"accuracy.{key}": value for key, value in chosen.items()} | task.counts()
    edge = len(set(grid)) > 2 and best.point in (min(grid), max(grid))
    notes = [f"the best point of the grid, {best.point:g}, is at its edge: give more"] if edge else []
    return Scores(scores, [*task.notes, *notes], {**task.settings, "solver": solver, "chosen": chosen})


def _chosen_solver(options: LinearOptions, task: Task) -> str:
    """Return what fits the heads of a task: mlp, sgd, lbfgs or ridge."""
    if options.head == "mlp":
        return "mlp"
    small = len(task.train.ids) * len(task.classes) <= SMALL
    return options.solver if options.solver != "auto" else "lbfgs" if small else "sgd"


def _check(options: LinearOptions) -> None:
    """Raise UserError for options that leave no grid to search."""
    lists = options.layers, options.lrs, options.mlp_lrs, options.penalties
    if not all(lists) or min(*(number for numbers in lists for number in numbers), options.iterations) <= 0:
        raise UserError("layers, lrs, mlp_lrs, penalties, iterations: must be above 0, at least one of each")
    if not 0 < options.validation < 1:
        raise UserError(f"validation: {options.validation} is not right; give a share between 0 and 1")


PROTOCOL = Protocol(evaluate, LinearOptions, PROBE, BATCH)


class Best(NamedTuple):
    """The winner of a grid: its input, its point, its accuracy and its cross-entropy on the held-out part."""

    input: Input
    point: float
    score: float
    loss: float

    def beats(self, other: Best | None) -> bool:
        """Say whether this is more often right or, as often, has the lower cross-entropy."""
        return other is None or (self.score, -self.loss) > (other.score, -other.loss)


Fit = Callable[[Tensor, Tensor, int, Sequence[float]], Sequence[Head]]


def probe(
    task: Task,
    layers: Sequence[int],
    grid: Sequence[float],
    fit: Fit,
    validation: float = 0.1,
    refit: bool = True,
) -> tuple[Best, Tensor]:
    """Search the grid on a held-out part of the training pictures.

    Args:
        task: with the features of as many layers as asked for.
        layers: see `evaluate`.
        grid: learning rates or penalties.
        fit: (features (n, D), labels (n,), K, points of the grid) -> heads, one for each point.
        validation: share of the training ids that is held out.
        refit: train the winner again on all training pictures.

    Returns:
        The winner and its classes (m,) for the test pictures.
    """
    apart = torch.from_numpy(held_out(np.array([f"validation/{name}" for name in task.train.ids]), validation))
    if apart.all() or not apart.any():
        raise UserError(f"validation: {len(task.train.ids)} training pictures are too few to hold some out of them")
    best, head, count = None, None, len(task.classes)
    for source in inputs(task.train, layers):
        x, y = source.of(task.train), task.train.labels
        for point, fitted in zip(grid, fit(x[~apart], y[~apart], count, grid), strict=True):
            logits, truth = fitted.logits(x[apart]).double(), y[apart]
            score, loss = (logits.argmax(dim=1) == truth).double().mean(), F.cross_entropy(logits, truth)
            candidate = Best(source, point, float(score), float(loss))
            if candidate.beats(best):
                best, head = candidate, fitted
    assert best is not None
    assert head is not None
    if refit:
        head = fit(best.input.of(task.train), task.train.labels, count, [best.point])[0]
    return best, head.predict(best.input.of(task.test))


def inputs(features: Features, layers: Sequence[int]) -> Iterator[Input]:
    """Yield what heads may read, without what the model does not have: fewer layers, no class token beside the mean."""
    for count in sorted({min(n, features.cls.shape[1]) for n in layers}):
        yield Input(count, False)
        if features.mean is not None:
            yield Input(count, True)


def _solver(solver: str, options: LinearOptions, seed: int, device: torch.device) -> Fit:
    def fit(x: Tensor, y: Tensor, classes: int, grid: Sequence[float]) -> Sequence[Head]:
        x, y = x.to(device), y.to(device)
        if solver == "mlp":
            return mlp_heads(x, y, classes, grid, options.iterations, options.hidden, seed)
        if solver == "sgd":
            return sgd_heads(x, y, classes, grid, options.iterations, seed)
        return (ridge_heads if solver == "ridge" else logistic_heads)(x, y, classes, grid)

    return fit
