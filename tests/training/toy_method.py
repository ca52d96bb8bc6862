"""A method of thirty lines that is no paper's: it shows what a file of `training/methods` needs, and tests the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.crops import Crop
from granary.training.data.loader import Part
from granary.training.method import Method, Moment, ParameterGroup, standard_groups
from granary.training.models.vit import VisionTransformer, ViTConfig


class ToyOptions(Options, frozen=True):
    """Options of the toy."""

    break_at: int = Field(-1, description="from this step on the loss is not a number")
    collapse: bool = Field(False, description="give features that do not differ")


class Toy(Method):
    """A classifier of the labels; -1 teaches nothing."""

    Options = ToyOptions
    MODEL = {"layer_scale": 0.0}  # noqa: RUF012
    columns = ("image", "label")
    evaluated = "encoder"

    def __init__(self, config: ViTConfig, options: ToyOptions, classes: Sequence[str]) -> None:
        super().__init__(config, options, classes)
        self.options = options
        self.encoder = VisionTransformer(config)
        self.head = nn.Linear(config.width, len(classes))

    def views(self) -> dict[str, Crop]:
        """One crop."""
        return {"image": Crop(1, self.config.img_size, (0.5, 1.0))}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Cross-entropy; the mean over the batch whatever the labels, so that parts of a batch average to the whole."""
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], Photometric())
        features = self.encoder(normalised(pixels, self.config.mean, self.config.std)).cls
        loss = F.cross_entropy(self.head(features), batch["label"], ignore_index=-1, reduction="sum")
        loss = loss / len(features)
        if 0 <= self.options.break_at <= moment.step:
            loss = loss * torch.nan
        watched = torch.ones_like(features) if self.options.collapse else features
        return {"loss": loss, "noise": torch.rand(()), "features": watched.detach()}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder and head are clipped apart."""
        return [replace(g, clip=name) for name in ("encoder", "head") for g in standard_groups(getattr(self, name))]
