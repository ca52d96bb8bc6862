"""How information about the classes is spread over the directions of the features.

A probe reads the first k principal components of the training features, k = 1, 2, 4, ...: where a few suffice, what is
known lies in the directions of largest variance (Shekhar et al. 2023, arXiv 2304.13089, ask so of objectives; the
details here are ours). Shapes: n pictures, D features.
"""

from __future__ import annotations

from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.training.evaluation.collapse import effective_rank, rank_me
from granary.training.evaluation.features import BATCH
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.layers import ridge_probe
from granary.training.evaluation.protocols.linear import PENALTIES
from granary.training.evaluation.scores import Real, Scores, accuracies
from granary.training.evaluation.similarity import centred, participation_ratio
from granary.training.evaluation.tasks import PROBE, changed, train_and_test, without_test


class SpreadOptions(SplitOptions, frozen=True):
    """Options of the probes of principal components."""

    penalties: Real = Field((1e2, 1e1, *PENALTIES), min_length=1, description="of ridge regression")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training ids that decides the penalty")


def evaluate(measured: Measured, options: SpreadOptions) -> Scores:
    """Probe the first principal components of the last vectors, and count directions of the training pictures'.

    Returns:
        accuracy of all components, with `.mean_per_class` and counts; accuracy_k1, accuracy_k2, accuracy_k4, ... of the
        first so many; participation_ratio, rank_me and effective_rank.
    """
    task = without_test(train_and_test(measured, options.holdout, why="spread"), "spread")
    x, device = task.train.last, torch_device(measured.device)
    mean, directions = principal_components(x)
    scores: dict[str, float | None] = {}
    for count in (x.shape[1], *powers_of_two(x.shape[1])):
        part = changed(task, partial(_projected, mean, directions[:, :count]))
        best, predicted = ridge_probe(part, options.penalties, device, options.validation)
        name = f"accuracy_k{count}" if scores else "accuracy"
        scores |= {**accuracies(predicted, task.test.labels, name), f"{name}.penalty": best.point}
        scores |= {} if name != "accuracy" else task.counts()
    scores |= {"participation_ratio": participation_ratio(x) if centred(x).any() else None, "rank_me": rank_me(x)}
    scores |= {"effective_rank": effective_rank(x), "rank_me.most": min(x.shape)}
    return Scores(scores, task.notes, task.settings)


PROTOCOL = Protocol(evaluate, SpreadOptions, PROBE, BATCH)


def powers_of_two(below: int) -> list[int]:
    """Return 1, 2, 4, ... below a number."""
    return [1 << bits for bits in range((below - 1).bit_length())]


def principal_components(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the eigenvectors (D, D) of the covariance of features (n, D), largest first; float64."""
    mean = x.double().mean(dim=0)
    less = x - mean
    return mean, torch.linalg.eigh(less.T @ less).eigenvectors.flip(1)


def _projected(mean: Tensor, directions: Tensor, x: Tensor) -> Tensor:
    return ((x - mean) @ directions).float()
