"""The collapse alarm: representations that say the same of every picture, seen while the loss still falls."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.recipe import Alarm

UNIFORM = 0.999  # of ln K: a teacher that has learned nothing or has been flattened


def relative_std(features: Tensor) -> float:
    """Return the mean standard deviation of a channel over pictures, divided by the root mean square of all values.

    Args:
        features: (n, D).

    Returns:
        0 when all pictures have one vector, 1 when the mean is 0.
    """
    x = features.float()
    return float(x.std(dim=0).mean() / x.square().mean().sqrt().clamp(min=1e-12))


def rank_me(features: Tensor, epsilon: float = 1e-7) -> float:
    """Return RankMe: exp of the entropy of the singular values, not centred (Garrido et al. 2023).

    Args:
        features: (n, D).
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp(min=1e-12) + epsilon
    return float(torch.exp(-(shares * shares.log()).sum()))


def effective_rank(features: Tensor) -> float:
    """Return RankMe of the features less their mean: how many directions tell pictures apart.

    Args:
        features: (n, D).
    """
    return rank_me(features.float() - features.float().mean(dim=0))


def teacher_entropy(probabilities: Tensor) -> tuple[float, float]:
    """Return the entropy of a teacher's answer and of its mean answer, both in 0..1 of ln K. probabilities: (n, K).

    The second near 0: one prototype answers for all pictures. The first near 1: every answer is uniform.
    """
    p = probabilities.float()
    scale = math.log(p.shape[1])
    single, mean = torch.special.entr(p).sum(dim=1).mean(), torch.special.entr(p.mean(dim=0)).sum()
    return float(single / scale), float(mean / scale)


def measure(features: Tensor, teacher: Tensor | None = None, projections: Tensor | None = None) -> dict[str, float]:
    """Return what the alarm looks at.

    Args:
        features: (n, D).
        teacher: (n, K), probabilities.
        projections: (n, K), what a loss compares.

    Returns:
        relative_std, rank_me and effective_rank of features; with a teacher its two entropies; with projections
        projection_std, the standard deviation of unit rows times the root of K, as SimSiam watches it (arXiv
        2011.10566, section 4.1): 1 when they are spread over the sphere, 0 when all are one.
    """
    features = features.detach()
    if not torch.isfinite(features).all():
        return {"relative_std": math.nan}
    measures = {
        "relative_std": relative_std(features),
        "rank_me": rank_me(features),
        "effective_rank": effective_rank(features),
    }
    if teacher is not None:
        measures["teacher_entropy"], measures["teacher_mean_entropy"] = teacher_entropy(teacher)
    if projections is not None:
        measures["projection_std"] = relative_std(F.normalize(projections.float(), dim=1))
    return measures


def symptoms(measures: Mapping[str, float], limits: Alarm) -> dict[str, str]:
    """Return name and sentence of each thing that looks like collapse; none when all is well."""
    sentences = {}
    std = measures["relative_std"]
    if math.isnan(std):
        return {"not finite": "features are not finite"}
    if std < limits.std:
        sentences["std"] = f"features hardly differ: their relative std is {std:.4g}, below {limits.std:g}"
    if measures["effective_rank"] < limits.rank:
        sentences["rank"] = f"features vary in {measures['effective_rank']:.3g} directions, fewer than {limits.rank:g}"
    spread = measures.get("projection_std", 1.0)
    if spread < limits.projection_std:
        sentences["projections"] = (
            f"what the loss compares is nearly the same for all pictures: projection std {spread:.3g}, below "
            f"{limits.projection_std:g}"
        )
    if measures.get("teacher_mean_entropy", 1.0) < limits.entropy:
        mean = measures["teacher_mean_entropy"]
        sentences["same answer"] = f"the teacher gives all pictures the same answer: entropy {mean:.3g} ln K"
    if measures.get("teacher_entropy", 0.0) > UNIFORM:
        sentences["uniform"] = f"the teacher's answers are uniform: entropy {measures['teacher_entropy']:.4g} ln K"
    return sentences
