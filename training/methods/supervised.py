"""Supervised classification with any backbone, also under imbalance.

Shapes: B pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.losses.classification import Loss, classification_loss
from granary.training.method import Method, Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build


class SupervisedOptions(Options, frozen=True):
    """Options of supervised training."""

    loss: Loss = Field("cross-entropy", description="balanced-softmax counts classes in the mixture that is trained on")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the picture's area in a crop")
    jitter: float = Field(0.0, ge=0, le=1, description="chance that colours are changed")
    grey: float = Field(0.0, ge=0, le=1, description="chance that a picture is grey")
    blur: float = Field(0.0, ge=0, le=1, description="chance that a picture is blurred")


class Supervised(Method):
    """A backbone and a linear classifier on its vector: of a ViT the class token, or the mean patch without one."""

    Options = SupervisedOptions
    MODEL = {"layer_scale": 0.0}  # noqa: RUF012 read only
    columns = ("image", "label")
    evaluated = "encoder"
    counts: Tensor

    def __init__(self, config: BackboneConfig, options: SupervisedOptions, classes: Mapping[str, float]) -> None:
        super().__init__(config, options, classes)
        if len(classes) < 2:
            labels = f"one class, {next(iter(classes))!r}" if classes else "no row with a label (-1 is none)"
            raise UserError(f"data: the column label has {labels}; supervised training needs at least two classes")
        self.options, self.classes = options, list(classes)
        self.encoder = build(config)
        self.head = nn.Linear(config.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("counts", torch.tensor(list(classes.values())), persistent=False)

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> object:
        """Return label -> share; where it was not written, the classes of the head by number, each as frequent."""
        count = len(weights["head.weight"])
        return {str(number): 1 / count for number in range(count)} if remembered is None else remembered

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return loss and accuracy over the labelled pictures, and the share of the batch that has no label."""
        options = self.options
        changes = Photometric(jitter=options.jitter, grey=options.grey, blur=options.blur)
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        features = self.encoder(normalised(pixels, self.config.mean, self.config.std)).cls
        return {**self.scores(self.head(features), batch["label"]), "features": features.detach()}

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss, accuracy and share of unlabelled pictures: (B, K) logits, (B,) labels, -1 for none.

        A batch without any label has the loss 0 and moves nothing.
        """
        labelled = labels >= 0
        watched = {"unlabelled": (~labelled).float().mean()}
        if not labelled.any():
            return {"loss": logits.sum() * 0, "accuracy": logits.new_zeros(()), **watched}
        known, truth = logits[labelled].float(), labels[labelled]
        loss = classification_loss(self.options.loss, known, truth, self.counts)
        return {"loss": loss, "accuracy": (known.argmax(dim=1) == truth).float().mean(), **watched}
