"""Statistics of features that need no labels: rank, spread, alignment and uniformity."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.store.sampling import bounded_sample
from granary.training.data import shards
from granary.training.data.crops import Crop
from granary.training.evaluation.collapse import effective_rank, feature_deviation, rank_me
from granary.training.evaluation.features import (
    BATCH,
    Measured,
    dead_letters,
    distinct,
    encode,
    features_of,
    load,
    pieces,
)
from granary.training.evaluation.scores import Scores
from granary.training.models.registry import resolved

NOTES = (
    "RankMe is not centred; it compares settings of one method, not methods (Garrido et al. 2023), and it is at most "
    "the smaller of pictures and width.",
)
SAMPLES = 25_600  # RankMe's
ROWS = 1024


def evaluate(
    model: str,
    data: str,
    *,
    samples: int = SAMPLES,
    views: int = 2000,
    scale: tuple[float, float] = (0.3, 1.0),
    split: str | None = None,
    holdout: float = 0.1,
    device: str = "auto",
    dtype: str = "float32",
    batch: int = BATCH,
    limit: int | None = None,
    seed: int = 0,
) -> Scores:
    """Measure the vectors of the last block, class tokens or mean patches.

    Args:
        model: of `load_subject`.
        data: a run; labels are not read.
        samples: pictures at most, drawn by hash of their ids.
        views: pictures of which two random crops are compared, the first ones; 0 leaves alignment out.
        scale: share of the picture's area in these crops.
        split, holdout: of the pictures; all by default.
        device, dtype, batch, limit, seed: of `Measured`.

    Returns:
        rank_me; effective_rank, RankMe of centred features; feature_std, the mean deviation of a feature, with
        `.relative` to the root mean square of all values and `.unit`, of unit rows (1 / sqrt(D) when spread evenly);
        uniformity and alignment of unit rows (Wang and Isola 2020, arXiv 2005.10242; lower is better).
    """
    how = Measured(model, device, dtype, batch, limit, seed)
    dataset = shards.open_dataset(data, ("image",), split, holdout, "features")
    features = features_of(how, dataset, split)
    chosen = torch.from_numpy(np.sort(bounded_sample(distinct(features.ids), samples, seed, "features")))
    x = features.last[chosen]
    if len(x) < 2 or not torch.isfinite(x).all():
        what = f"{len(x)} picture" if len(x) < 2 else "features that are not finite"
        raise UserError(f"data: {what} in {dataset.path}: no statistics; give two pictures or more, and a sound model")
    found: dict[str, float | None] = {**measured(x.to(torch_device(device)))}
    found |= {"rank_me.pictures": len(x), "rank_me.unreadable": len(features.dead)}
    if views:
        pairs = two_views(how, dataset, min(views, limit or views), scale)
        found |= {"alignment": alignment(*pairs), "alignment.pictures": len(pairs[0])}
    settings = {"model": resolved(model), "data": dataset.path, "split": split, "dead": dead_letters(features)}
    return Scores(found, settings=settings)


def measured(x: Tensor) -> dict[str, float]:
    """Return the statistics of features (n, D)."""
    unit = F.normalize(x.float(), dim=1)
    return {
        "rank_me": rank_me(x),
        "rank_me.most": min(x.shape),
        "effective_rank": effective_rank(x),
        "feature_std": float(x.float().std(dim=0).mean()),
        "feature_std.relative": feature_deviation(x),
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
    """Return the mean of |x - y|^2 over pairs of views, scaled to length 1. first, second: (n, D)."""
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(dim=1).mean())


def two_views(how: Measured, dataset: shards.Dataset, views: int, scale: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return the features (n, D) of two random crops, without other changes, of the first so many pictures."""
    subject, device = load(how), torch_device(how.device)
    crop = Crop(2, subject.config.side, scale)
    few = Measured(how.model, how.device, how.dtype, how.batch, views, how.seed)
    found = [
        encode(subject, pixels.flatten(0, 1), device, 1, how.dtype)[0][:, -1].unflatten(0, (-1, 2))
        for part in pieces(dataset, crop, ("image",), (), few)
        for pixels in part["image"].split(max(1, how.batch // 2))
        if len(pixels)
    ]
    both = torch.cat(found)  # (n, 2, D)
    return both[:, 0], both[:, 1]
