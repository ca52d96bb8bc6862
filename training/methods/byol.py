"""BYOL: predict from one view of a picture what a moving average of the network says of the other; no negatives.

Grill et al. 2020 (arXiv 2006.07733). Shapes: B pictures, K dimensions of projector and predictor.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from granary.training.data.collate import Part
from granary.training.losses.pairs import negative_cosine
from granary.training.method import Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.projector import build_projector
from granary.training.two_views import BYOLViewOptions, TargetOptions, TargetViews, watched


class BYOLOptions(BYOLViewOptions, TargetOptions, frozen=True):
    """Options of BYOL; defaults are the paper's for 1,000 epochs of ImageNet."""

    projector_hidden: tuple[int, ...] = Field(
        (4096,), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(256, ge=1, description="width of projector and predictor")
    predictor_hidden: tuple[int, ...] = Field((4096,), description="widths of the predictor's hidden layers")


class BYOL(TargetViews):
    """The online network, which is trained and evaluated, its average the target, and the predictor."""

    Options = BYOLOptions
    options: BYOLOptions

    def __init__(self, config: BackboneConfig, options: BYOLOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        width = options.projector_width
        self.predictor = build_projector(width, options.predictor_hidden, width, options.projector_norm)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, in 0..8: the squared distance of unit rows, 2 - 2 cos, for both ways."""
        pixels = self.pixels(batch)
        features, projections = self.embedded(pixels)
        first, second = self.apart(self.predictor, projections)
        first_target, second_target = self.targets(pixels)
        loss = 4 + 2 * (negative_cosine(first, second_target) + negative_cosine(second, first_target))
        return {"loss": loss, **watched(features, projections[0])}
