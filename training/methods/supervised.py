"""Supervised classification, also under imbalance: losses and samplers as pure functions, and the method.

Balanced softmax: Ren et al. 2020 (arXiv 2007.10740): p_k is proportional to n_k exp(z_k).
Shapes: B pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.crops import Crop
from granary.training.methods import Moment, standard_groups
from granary.training.models.vit import VisionTransformer, ViTConfig

Loss = Literal["cross-entropy", "balanced-softmax"]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(z)_y, the mean over the batch: (B, K) logits, (B,) targets -> scalar."""
    return F.cross_entropy(logits, targets)


def balanced_softmax(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Return -log(n_y exp(z_y) / sum_k n_k exp(z_k)), the mean over the batch.

    Args:
        logits: (B, K).
        targets: (B,) class indices.
        counts: (K,) pictures of each class in the mixture that is trained on, real and synthetic together. A class
            without any takes no part in the sum.
    """
    return F.cross_entropy(logits + counts.to(logits.dtype).log(), targets)  # log 0 = -inf: a share of 0


def classification_loss(kind: Loss, logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Return the loss of that name; raises ValueError when there is none."""
    if kind == "cross-entropy":
        return cross_entropy(logits, targets)
    if kind == "balanced-softmax":
        return balanced_softmax(logits, targets, counts)
    raise ValueError(f"loss '{kind}' is unknown; it is cross-entropy or balanced-softmax")


def balanced_weights(groups: np.ndarray) -> np.ndarray:
    """Return the probability of each picture when every group is drawn as often: 1 / (G n_g), (n,) float64."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (len(counts) * counts[inverse])


def balanced_indices(groups: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw rows with replacement so that every group comes equally often: (n,) groups -> (size,) int64."""
    return rng.choice(len(groups), size, p=balanced_weights(groups))


class SupervisedOptions(Options, frozen=True):
    """Options of supervised training."""

    loss: Loss = Field("cross-entropy", description="balanced-softmax counts classes in the mixture that is trained on")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the picture's area in a crop")
    jitter: float = Field(0.0, ge=0, le=1, description="chance that colours are changed")
    grey: float = Field(0.0, ge=0, le=1, description="chance that a picture is grey")
    blur: float = Field(0.0, ge=0, le=1, description="chance that a picture is blurred")


class Supervised(nn.Module):
    """A ViT and a linear classifier on its class token, or on the mean of its patches where it has none."""

    Options = SupervisedOptions
    MODEL = {"layer_scale": 0.0}  # noqa: RUF012 read only
    columns = ("image", "label")
    evaluated = "encoder"
    counts: Tensor

    def __init__(self, config: ViTConfig, options: SupervisedOptions, classes: Mapping[str, float]) -> None:
        super().__init__()
        if len(classes) < 2:
            found = f"one class, {next(iter(classes))!r}" if classes else "no row with a label (-1 is none)"
            raise UserError(f"data: the column label has {found}; supervised training needs at least two classes")
        self.config, self.options = config, options
        self.encoder = VisionTransformer(config)
        self.head = nn.Linear(config.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("counts", torch.tensor(list(classes.values())), persistent=False)

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.side, self.options.crop_scale)}

    def forward(self, batch: dict[str, Any], moment: Moment) -> dict[str, Tensor]:
        """Return loss and accuracy over the labelled pictures, and the share of the batch that has no label."""
        options = self.options
        changes = Photometric(jitter=options.jitter, grey=options.grey, blur=options.blur)
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        features = self.encoder(normalised(pixels, self.config.mean, self.config.deviation)).cls
        return {**self.scores(self.head(features), batch["label"]), "features": features.detach()}

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss, accuracy and share of unlabelled pictures: (B, K) logits, (B,) labels, -1 for none.

        A batch without any label has the loss 0 and moves nothing.
        """
        labelled = labels >= 0
        told = {"unlabelled": (~labelled).float().mean()}
        if not labelled.any():
            return {"loss": logits.sum() * 0, "accuracy": logits.new_zeros(()), **told}
        known, wanted = logits[labelled].float(), labels[labelled]
        loss = classification_loss(self.options.loss, known, wanted, self.counts)
        return {"loss": loss, "accuracy": (known.argmax(dim=1) == wanted).float().mean(), **told}

    def after_step(self, moment: Moment) -> None:
        """Nothing follows."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All weights; no decay of biases and norms."""
        return standard_groups(self)
