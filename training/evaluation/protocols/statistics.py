"""Statistics of features that need no labels: rank, spread, alignment and uniformity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.store.sampling import bounded_sample
from granary.training.data import shards
from granary.training.data.crops import Crop
from granary.training.evaluation.collapse import effective_rank, rank_me, relative_std
from granary.training.evaluation.features import (
    BATCH,
    dead_letters,
    distinct,
    encode,
    features_of,
    load,
    pieces,
)
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores
from granary.training.evaluation.similarity import centred, participation_ratio
from granary.training.models.registry import resolved

NOTES = (
    "RankMe is not centred; it compares settings of one method, not methods (Garrido et al. 2023), and it is at most "
    "the smaller of pictures and width.",
)
SAMPLES = 25_600  # RankMe's
ROWS = 1024


class FeatureOptions(SplitOptions, frozen=True):
    """Options of the statistics of features."""

    samples: int = Field(SAMPLES, description="pictures at most, drawn by hash of their ids")
    views: int = Field(
        2000, description="pictures of which two random crops are compared, the first ones; 0 leaves alignment out"
    )
    scale: tuple[float, float] = Field((0.3, 1.0), description="share of the picture's area in these crops")


def evaluate(measured: Measured, options: FeatureOptions) -> Scores:
    """Measure the vectors of the last block, class tokens or mean patches; labels are not read.

    Returns:
        rank_me; effective_rank, RankMe of centred features; participation_ratio of them, None where all are the same;
        feature_std, the mean standard deviation of a feature, with
        `.relative` to the root mean square of all values and `.unit`, of unit rows (1 / sqrt(D) when spread evenly);
        uniformity and alignment of unit rows (Wang and Isola 2020, arXiv 2005.10242; lower is better).
    """
    split = measured.split
    dataset = shards.open_dataset(measured.data, ("image",), split, options.holdout, "features", measured.columns)
    features = features_of(measured, dataset, split)
    drawn = bounded_sample(distinct(features.ids), options.samples, measured.seed, "features")
    x = features.last[torch.from_numpy(np.sort(drawn))]
    if len(x) < 2 or not torch.isfinite(x).all():
        what = f"{len(x)} picture" if len(x) < 2 else "features that are not finite"
        raise UserError(f"data: {what} in {dataset.path}: no statistics; give two pictures or more, and a sound model")
    scores = statistics(x.to(torch_device(measured.device)))
    scores |= {"rank_me.pictures": len(x), "rank_me.unreadable": len(features.dead)}
    if options.views:
        views = min(options.views, measured.limit or options.views)
        pairs = two_views(replace(measured, limit=views), dataset, options.scale)
        scores |= {"alignment": alignment(*pairs), "alignment.pictures": len(pairs[0])}
    settings = {"model": resolved(measured.model), "data": dataset.path, "split": split, "dead": dead_letters(features)}
    return Scores(scores, settings=settings)


PROTOCOL = Protocol(evaluate, FeatureOptions, ("split", "batch", "limit", "seed"), BATCH, NOTES)


def statistics(x: Tensor) -> dict[str, float | None]:
    """Return the statistics of features (n, D)."""
    unit = F.normalize(x.float(), dim=1)
    return {
        "rank_me": rank_me(x),
        "rank_me.most": min(x.shape),
        "effective_rank": effective_rank(x),
        "participation_ratio": participation_ratio(x) if centred(x).any() else None,
        "feature_std": float(x.float().std(dim=0).mean()),
        "feature_std.relative": relative_std(x),
        "feature_std.unit": float(unit.std(dim=0).mean()),
        "uniformity": uniformity(unit),
    }


def uniformity(unit: Tensor) -> float:
    """Return log of the mean over pairs i < j of exp(-2 |x_i - x_j|^2), rows of length 1 (n, D); 0 when all are one."""
    total, n = torch.zeros((), dtype=torch.float64, device=unit.device), len(unit)
    for start in range(0, n, ROWS):
        energy = (4 * unit[start : start + ROWS] @ unit.T - 4).double().exp()  # |x - y|^2 = 2 - 2 cosine
        total += energy.triu(start + 1).sum()
    return float((total / (n * (n - 1) / 2)).log())


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean of |x - y|^2 over pairs of views, scaled to length 1.

    Args:
        first: (n, D).
        second: (n, D).
    """
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(dim=1).mean())


def two_views(measured: Measured, dataset: shards.Dataset, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return the features (n, D) of two random crops, without other changes, of the first pictures of a dataset."""
    subject, device = load(measured), torch_device(measured.device)
    crop = Crop(2, subject.config.img_size, scale)
    features = [
        encode(subject, pixels.flatten(0, 1), device, 1, measured.dtype)[0][:, -1].unflatten(0, (-1, 2))
        for part in pieces(dataset, crop, limit=measured.limit, seed=measured.seed)
        for pixels in part["image"].split(max(1, measured.batch // 2))
        if len(pixels)
    ]
    both = torch.cat(features)  # (n, 2, D)
    return both[:, 0], both[:, 1]
