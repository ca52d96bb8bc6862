"""RCDM: a diffusion model is told what a frozen model makes of a picture, and learns to draw the picture.

Bordes et al. 2021 (arXiv 2112.09164); told backbone and projector side by side, it is what Meehan et al. 2023 (arXiv
2304.13850) look at memorised pictures by: `granary evaluate reconstruction`. The authors' code learns the variance of
the noise too; here it is fixed, and pictures are drawn by DDIM.
Shapes: B pictures, S their side, C numbers of a vector.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.method import Moment
from granary.training.models.average import average
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.conditioned_unet import ConditionedUNet
from granary.training.models.teacher import Taught, TaughtOptions, Teacher, projector_of


class RCDMOptions(TaughtOptions, frozen=True):
    """Options of RCDM; defaults are those of the authors' code, for pictures of 128 px."""

    projector: bool = Field(True, description="tell what the model's projector gives too, not its backbone alone")
    size: int = Field(128, ge=8, description="pixels of a side of the pictures that are drawn")
    channels: int = Field(256, ge=4, description="of the network's first level")
    multipliers: tuple[int, ...] = Field((1, 1, 2, 3, 4), min_length=1, description="of the channels, level by level")
    attention: tuple[int, ...] = Field((32, 16, 8), description="sides of levels at which pixels attend to each other")
    blocks: int = Field(2, ge=1, description="of each level")
    noise_steps: int = Field(1000, ge=10, description="from a picture to noise")
    momentum: float = Field(0.9999, ge=0, lt=1, description="of the average of the weights, which draws")

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.size % (1 << (len(self.multipliers) - 1)):
            raise ValueError(f"size is {self.size}; it must be a multiple of 2 to the number of levels less one")
        return self


class RCDM(Taught):
    """A frozen model, and a diffusion model that is told what it says of pictures.

    Args:
        config: not looked at: the model to use is the frozen one.
        options: of the method.
        known: nothing, or the facts of the frozen model.
    """

    Options = RCDMOptions
    shardable = False  # the weights that draw are an average of others

    def __init__(self, config: BackboneConfig, options: RCDMOptions, known: object = None) -> None:
        teacher = Teacher.of(options, known, alone=not options.projector)
        super().__init__(teacher.method.config, options, known)
        self.options, self.teacher, method = options, teacher, teacher.method
        self.evaluated = f"teacher.method.{method.evaluated}"
        projector = projector_of(method)
        if options.projector and projector is None:
            raise UserError(f"options.projector: {options.teacher} has none; give --options.projector false")
        wanted = {method.evaluated_model(), projector}
        teacher.keep([name for name, module in method.named_children() if wanted & {*module.modules()}])
        size = self.vectors(torch.zeros(1, self.seen, self.seen, 3, dtype=torch.uint8)).shape[1]
        sizes = options.size, size, options.channels, options.multipliers, options.attention, options.blocks
        self.network = ConditionedUNet(*sizes, options.noise_steps)
        self.drawing = ConditionedUNet(*sizes, options.noise_steps)
        self.drawing.load_state_dict(self.network.state_dict())
        self.drawing.requires_grad_(False)

    @property
    def seen(self) -> int:
        """Pixels of a side of the pictures that the frozen model is shown."""
        return self.teacher.facts.side

    def views(self) -> dict[str, Crop]:
        """The middle of a picture, as it is drawn and as the frozen model sees it."""
        return {"image": Crop(1, self.options.size, centre=True), "seen": Crop(1, self.seen, centre=True)}

    def encoders(self) -> list[Backbone]:
        """None: the frozen model is given."""
        return []

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch: the mean square of the noise less what is taken for it, at drawn steps."""
        pictures = to_unit(batch["image"][:, 0]).mul(2).sub(1)
        vectors = self.vectors(batch["seen"][:, 0])
        steps = torch.randint(self.options.noise_steps, (len(pictures),), device=pictures.device)
        noise = torch.randn_like(pictures)
        predicted = self.network(self.network.noised(pictures, noise, steps), steps, vectors)
        return {"loss": F.mse_loss(predicted.float(), noise.float())}

    def after_step(self, moment: Moment) -> None:
        """Move the average."""
        average(self.drawing, self.network, self.options.momentum)

    def shown(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, side, side, 3) uint8 as the frozen model takes them."""
        return normalised(to_unit(pictures), self.config.mean, self.config.std)

    @torch.no_grad()
    def sites(self, pictures: Tensor) -> list[Tensor]:
        """Return what the frozen model makes of pictures (B, side, side, 3) uint8: behind the backbone, the projector.

        Returns:
            One or two, each (B, D).
        """
        behind = self.teacher.method.evaluated_model()(self.shown(pictures)).cls
        projector = projector_of(self.teacher.method) if self.options.projector else None
        return [behind] if projector is None else [behind, projector(behind)]

    def vectors(self, pictures: Tensor) -> Tensor:
        """Return what is told of pictures (B, side, side, 3) uint8: (B, C)."""
        return torch.cat(self.sites(pictures), dim=1)
