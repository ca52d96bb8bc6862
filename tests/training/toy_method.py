"""A method of thirty lines that is no paper's: it shows what a file of `training/methods` needs, and tests the loop.

`ToyMemory` is the same with all the state that a method can have beside its weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.crops import Crop
from granary.training.data.loader import Part
from granary.training.method import Method, Moment, ParameterGroup, standard_groups
from granary.training.models.average import average
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
        features = self.encode(batch)
        loss = F.cross_entropy(self.head(features), batch["label"], ignore_index=-1, reduction="sum")
        loss = loss / len(features)
        if 0 <= self.options.break_at <= moment.step:
            loss = loss * torch.nan
        watched = torch.ones_like(features) if self.options.collapse else features
        return {"loss": loss, "noise": torch.rand(()), "features": watched.detach()}

    def encode(self, batch: Part) -> Tensor:
        """Return the features (B, D) of the pictures."""
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], Photometric())
        return self.encoder(normalised(pixels, self.config.mean, self.config.std)).cls

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder and head are clipped apart."""
        return [replace(g, clip=name) for name in ("encoder", "head") for g in standard_groups(getattr(self, name))]


class ToyMemory(Toy):
    """With BatchNorm, an average of the projector that runs in training mode, and a queue of what that said."""

    queue: Tensor
    place: Tensor

    def __init__(self, config: ViTConfig, options: ToyOptions, classes: Sequence[str]) -> None:
        super().__init__(config, options, classes)
        hidden = nn.Linear(config.width, 8, bias=False)
        self.projector = nn.Sequential(hidden, nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.keys = copy.deepcopy(self.projector).requires_grad_(False)
        self.register_buffer("queue", torch.ones(24, 4))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.latest: list[Tensor] = []

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Cross-entropy, and the mean square of the products with the queue."""
        features = self.encode(batch)
        if 0 <= self.options.break_at <= moment.step:
            features = features * torch.nan
        if moment.part == 0:  # what a step that was not taken said is dropped
            self.latest = []
        with torch.no_grad():
            self.latest.append(self.keys(features))
        likeness = (self.projector(features) @ self.queue.T).square().mean()
        loss = F.cross_entropy(self.head(features), batch["label"], ignore_index=-1, reduction="sum") / len(features)
        return {"loss": loss + likeness, "likeness": likeness, "features": features.detach()}

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Move the average; put what it said on all processes into the queue."""
        average(self.keys, self.projector, 0.9)
        rows, self.latest = torch.cat(self.latest), []
        if dist.is_initialized():
            parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, rows)
            rows = torch.cat(parts)
        self.queue[(self.place + torch.arange(len(rows))) % len(self.queue)] = rows
        self.place += len(rows)

    def parameter_groups(self) -> list[ParameterGroup]:
        """All are clipped together."""
        return standard_groups(self)
