"""SimReg: a small model regresses the features that a large, frozen teacher has of the same view.

Navaneet et al. 2021 (arXiv 2201.05131). Any model can teach. With a linear adapter and lengths compared too it is plain
regression of features. In the authors' code the MLP has a linear layer of the student's width in its middle, which this
one has not. Shapes: B pictures, V views of each, D width of the teacher.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.training.data.collate import Part
from granary.training.method import Moment
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.projector import build_projector
from granary.training.models.teacher import Taught, TaughtOptions, Teacher
from granary.training.two_views import ChangedViews, Share, ViewOptions


class SimRegOptions(ViewOptions, TaughtOptions, frozen=True):
    """Options of SimReg; defaults are those of the authors' command for ResNet-18."""

    hidden: tuple[int, ...] = Field(
        (1024, 1024), description="widths of the adapter's hidden layers; none, [], is a linear adapter"
    )
    unit: bool = Field(True, description="compare directions of features alone; false: the features themselves")
    crop_scale: Share = Field((0.2, 1.0), description="share of the picture's area in a crop")
    jitter: float = Field(0.0, ge=0, le=1, description="chance that colours are changed")
    grey: float = Field(0.0, ge=0, le=1, description="chance that a view is grey")
    blur: float = Field(0.0, ge=0, le=1, description="chance that a view is blurred")


class SimReg(ChangedViews, Taught):
    """A backbone, and an adapter from its features to those of the teacher."""

    Options = SimRegOptions
    options: SimRegOptions

    def __init__(self, config: BackboneConfig, options: SimRegOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.teacher = Teacher.of(options, known, alone=True)
        self.adapter = build_projector(config.width, options.hidden, self.teacher.method.config.width, bias=True)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch: the mean squared distance of adapted features to the teacher's."""
        pixels = self.pixels(batch).flatten(0, 1)  # (V * B, 3, S, S)
        features, targets = self.encoder(pixels).cls, self.teacher.features(pixels, self.config)
        loss = squared_distances(self.adapter(features), targets, self.options.unit).mean()
        return {"loss": loss, "features": features[: len(batch["image"])].detach()}

    def encoders(self) -> list[Backbone]:
        """The student, without the teacher, whose weights are given."""
        return [self.encoder]


def squared_distances(rows: Tensor, targets: Tensor, unit: bool) -> Tensor:
    """Return |x - t|^2 of each row, (N, D) and (N, D) -> (N,), in float32 or above.

    Args:
        rows: of the student, adapted.
        targets: of the teacher.
        unit: whether both are divided by their lengths first, which makes it 2 - 2 cos.
    """
    both = [F.normalize(x.float(), dim=1) if unit else x.float() for x in (rows, targets)]
    return (both[0] - both[1]).square().sum(dim=1)
