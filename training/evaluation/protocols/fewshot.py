"""Few-shot classification on frozen features: n labelled pictures of each class, several draws, mean and deviation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.store.sampling import bounded_sample
from granary.training.evaluation.features import BATCH, Features, distinct
from granary.training.evaluation.heads import logistic_heads
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores, Whole
from granary.training.evaluation.tasks import PROBE, train_and_test, without_test

PENALTY = 0.1  # of the logistic regression: a handful of pictures bear a strong one

Classifier = Literal["centroid", "logistic"]


class FewShotOptions(SplitOptions, frozen=True):
    """Options of few-shot classification."""

    shots: Whole = Field((1, 5, 10), description="pictures of a class; a class with fewer gives all it has")
    draws: int = Field(
        10,
        description="how often they are drawn, by hash of (seed, draw, id); the draw of fewer shots is part of that of "
        "more",
    )
    classifier: Classifier = Field(
        "centroid",
        description="centroid: the nearest class mean (SimpleShot's CL2N, Wang et al. 2019, arXiv 1911.04623); "
        "logistic: logistic regression with penalty 0.1",
    )


def evaluate(measured: Measured, options: FewShotOptions) -> Scores:
    """Learn from a few training pictures of each class, test on all test pictures, again and again.

    Returns:
        accuracy_SHOTS, the mean over draws, with `.std` (of a sample: over draws - 1), `.low` and `.high`.
    """
    shots, draws = options.shots, options.draws
    if not shots or min(shots) < 1 or draws < 1:
        raise UserError(f"shots, draws: {shots} and {draws} are not right; give numbers above 0")
    task = without_test(train_and_test(measured, options.holdout, why="few-shot"), "few-shot")
    where, count = torch_device(measured.device), len(task.classes)
    test, scores = task.test.last.to(where), dict[str, float | None]()
    for number in shots:
        results = []
        for chosen in drawn(task.train, number, draws, measured.seed):
            train, labels = task.train.last[chosen].to(where), task.train.labels[chosen].to(where)
            predicted = classify(train, labels, test, count, options.classifier)
            results.append(float((predicted == task.test.labels).double().mean()))
        name = f"accuracy_{number}"
        scores |= {name: float(np.mean(results)), f"{name}.std": float(np.std(results, ddof=1)) if draws > 1 else None}
        scores |= {f"{name}.low": min(results), f"{name}.high": max(results), f"{name}.draws": draws}
    least = int(task.train.labels.bincount(minlength=count).min())
    notes = [f"the smallest class has {least} training pictures, fewer than {max(shots)}"] if least < max(shots) else []
    return Scores({**scores, **task.counts(f"accuracy_{shots[0]}")}, [*task.notes, *notes], task.settings)


PROTOCOL = Protocol(evaluate, FewShotOptions, PROBE, BATCH)


def drawn(train: Features, shots: int, draws: int, seed: int) -> Iterator[Tensor]:
    """Yield for each draw the rows of `shots` pictures of every class, (shots * K,) int64 at most."""
    ids, labels = np.array(distinct(train.ids)), train.labels.numpy()
    rows = [np.flatnonzero(labels == number) for number in np.unique(labels)]
    for draw in range(draws):
        chosen = [members[bounded_sample(ids[members], shots, seed, f"few-shot/{draw}")] for members in rows]
        yield torch.from_numpy(np.sort(np.concatenate(chosen)))


def classify(train: Tensor, labels: Tensor, test: Tensor, classes: int, classifier: Classifier) -> Tensor:
    """Return the classes (m,) of test features (m, D) on the CPU, learned from train (n, D) and labels (n,)."""
    if classifier == "logistic":
        return logistic_heads(train, labels, classes, [PENALTY])[0].predict(test)
    centre = train.mean(dim=0)
    bank, queries = F.normalize(train - centre, dim=1), F.normalize(test - centre, dim=1)
    member = F.one_hot(labels, classes).to(bank.dtype)  # (n, K)
    sizes = member.sum(dim=0)[:, None]
    means = (member.T @ bank) / sizes.clamp(min=1)  # (K, D)
    distance = torch.cdist(queries, means, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.masked_fill(sizes.T == 0, torch.inf).argmin(dim=1).cpu()
