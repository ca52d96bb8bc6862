"""The online probe: what frozen features are worth, by weighted kNN and by ridge regression on the labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.collate import divided
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan, Parts
from granary.training.data.table import USUAL
from granary.training.evaluation.features import encode
from granary.training.evaluation.heads import ridge_heads
from granary.training.evaluation.protocols.knn import TEMPERATURE, votes
from granary.training.models.backbone import Backbone
from granary.training.recipe import TrainRecipe
from granary.training.run.validation import evaluating

RIDGE = 0.01  # penalty, as a multiple of the number of samples, on standardised features


class OnlineProbe:
    """Labelled pictures of a dataset, kept in memory as bytes, and the scores of a model on them."""

    def __init__(self, recipe: TrainRecipe) -> None:
        probe, first = recipe.probe, recipe.data[0]
        path, columns = (probe.data, USUAL) if probe.data else (first.path, first.columns)
        sets = [
            shards.open_dataset(path, ("image", "label"), split, recipe.holdout, "the online probe", columns)
            for split in ("train", "test")
        ]
        self.classes, self.k = shards.class_names(sets), probe.k
        if len(self.classes) < 2:
            raise UserError(f"probe: the labels of {path} have {len(self.classes)} classes; give probe.every 0")
        side = recipe.config().img_size
        self.train = _labelled(sets[0], probe.train, side, self.classes, recipe.seed)
        self.test = _labelled(sets[1], probe.test, side, self.classes, recipe.seed)

    def scores(self, model: Backbone, device: torch.device) -> dict[str, float]:
        """Return the accuracies of kNN and ridge regression on the features of a model: its `Tokens.cls`."""
        with evaluating(model):
            train, test = (features(model, pixels, device) for pixels, _ in (self.train, self.test))
        labels, truth, count = self.train[1], self.test[1], len(self.classes)
        return {
            "knn": float((knn(train, labels, test, count, self.k) == truth).float().mean()),
            "linear": float((ridge(train, labels, test, count) == truth).float().mean()),
        }


def _labelled(
    dataset: shards.Dataset, count: int, side: int, classes: Sequence[str], seed: int
) -> tuple[Tensor, Tensor]:
    """Return up to `count` pictures (n, side, side, 3) uint8 drawn by seed, and their labels (n,); none unlabelled."""
    count = min(count, dataset.count)
    crops = {"image": Crop(1, side, centre=True)}
    categories = {"label": dict.fromkeys(classes, 1.0)}
    plan = BatchPlan([dataset], [1.0], crops, ("image", "label"), categories, count, 1, count, seed)
    part = next(divided(Parts(plan)[0, 0, 1]))
    known = part["label"] >= 0
    if not known.any():
        raise UserError(f"probe: no sample of {dataset.path} drawn for the probe has a label; give probe.every 0")
    return part["image"][known][:, 0], part["label"][known]


def features(model: Backbone, pixels: Tensor, device: torch.device, batch: int = 256) -> Tensor:
    """Return (n, D) float32 on the CPU: class tokens, or mean patches, of pictures (n, side, side, 3) uint8."""
    return torch.cat([encode(model, part, device)[0][:, -1] for part in pixels.split(batch)])


def knn(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int) -> Tensor:
    """Return the classes (m,) by a vote of the k nearest in cosine, weighted by exp(cosine / 0.07)."""
    return votes(train, labels, test, classes, [k], TEMPERATURE)[k]


def ridge(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """Return the classes (m,) by ridge regression to one-hot labels, in closed form, on standardised features."""
    return ridge_heads(train, labels, classes, [RIDGE])[0].predict(test)
