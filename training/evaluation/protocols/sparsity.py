"""How sparse the features of a backbone with a ReLU at its end are, and what their zeros alone tell.

Bordes et al. 2023, "A surprisingly simple technique to control the pretraining bias for better transfer: Expand or
Narrow your representation" (arXiv 2304.05369). A zero is exactly 0: with a tolerance small features would be sparse.

Shapes: n pictures, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.training.evaluation.features import BATCH
from granary.training.evaluation.heads import LinearHead, logistic_heads, ridge_heads
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.linear import PENALTIES, probe
from granary.training.evaluation.scores import Real, Scores, accuracies
from granary.training.evaluation.tasks import PROBE, changed, train_and_test, without_test

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


class SparsityOptions(SplitOptions, frozen=True):
    """Options of the statistics of zeros."""

    solver: Literal["ridge", "lbfgs"] = Field("ridge", description="of the three probes; as of the protocol linear")
    penalties: Real = Field(
        (1e2, 1e1, *PENALTIES),
        min_length=1,
        description="of the probes, as of the protocol linear; wide features want greater ones",
    )
    random_width: int = Field(
        0,
        ge=0,
        description="width of a random projection with ReLU that is probed too, a control of larger probes; 0: none",
    )


def evaluate(measured: Measured, options: SparsityOptions) -> Scores:
    """Count zeros in the last features of the test pictures; probe these features, and which of them are not zero.

    Returns:
        zeros and dead_units with the details of `zeros`; accuracy of a linear probe, accuracy_binary of one that reads
        1 where a feature is not zero, and with `random_width` accuracy_random of one that reads a random projection.
    """
    task = without_test(train_and_test(measured, options.holdout, why="sparsity"), "sparsity")
    solve, device = ridge_heads if options.solver == "ridge" else logistic_heads, torch_device(measured.device)

    def fit(x: Tensor, y: Tensor, classes: int, grid: Sequence[float]) -> list[LinearHead]:
        return solve(x.to(device), y.to(device), classes, grid)

    scores: dict[str, float | None] = {**zeros(task.test.last)}
    for name, change in _inputs(options.random_width, measured.seed).items():
        best, predicted = probe(changed(task, change), [1], options.penalties, fit)
        scores |= {**accuracies(predicted, task.test.labels, name), f"{name}.penalty": best.point}
    negative = float((task.test.last < 0).double().mean())
    notes = [f"{negative:.0%} of the features are negative: without a ReLU at the end zeros say little"]
    return Scores({**scores, **task.counts()}, [*task.notes, *(notes if negative else [])], task.settings)


PROTOCOL = Protocol(evaluate, SparsityOptions, PROBE, BATCH)


def zeros(x: Tensor) -> dict[str, float]:
    """Return how many features are exactly zero.

    Args:
        x: (n, D).

    Returns:
        zeros, the mean share of a picture's features, with quantiles over pictures `.q10` to `.q90` and `.half`, the
        share of pictures of which half the features or more are zero; dead_units, the share of features that are zero
        for every picture, with `.q10` to `.q90` over features, of the share of pictures for which one is zero.
    """
    zero = x == 0
    pictures, units = zero.double().mean(dim=1), zero.double().mean(dim=0)
    shares = {"zeros": float(pictures.mean()), **_quantiles("zeros", pictures)}
    shares |= {"zeros.half": float((pictures >= 0.5).double().mean())}
    return {**shares, "dead_units": float((units == 1).double().mean()), **_quantiles("dead_units", units)}


def _quantiles(name: str, values: Tensor) -> dict[str, float]:
    points = torch.quantile(values, torch.tensor(QUANTILES, dtype=values.dtype)).tolist()
    return {f"{name}.q{round(100 * share)}": point for share, point in zip(QUANTILES, points, strict=True)}


def binarised(x: Tensor) -> Tensor:
    """Return 1 where a feature is not zero, 0 where it is: (n, D) float32."""
    return (x != 0).float()


def random_features(x: Tensor, width: int, seed: int) -> Tensor:
    """Return relu(x R) of features (n, D), (n, width): R is N(0, 1 / D), of this seed."""
    matrix = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(seed))
    return F.relu(x @ (matrix / math.sqrt(x.shape[1])))


def _inputs(random_width: int, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return by the name of its accuracy what each probe reads of the features."""
    read: dict[str, Callable[[Tensor], Tensor]] = {"accuracy": lambda x: x, "accuracy_binary": binarised}
    if random_width:
        read["accuracy_random"] = lambda x: random_features(x, random_width, seed)
    return read
