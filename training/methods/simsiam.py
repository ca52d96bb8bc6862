"""SimSiam: predict from one view of a picture what the same network says of the other; no negatives, no average.

Chen and He 2020 (arXiv 2011.10566). What keeps it from collapse is the predictor, and that there is no gradient through
what is predicted. Shapes: B pictures, K dimensions of projector and predictor.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from granary.training.data.collate import Part
from granary.training.losses.pairs import negative_cosine
from granary.training.method import Moment, ParameterGroup, standard_groups
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.projector import build_projector
from granary.training.two_views import Share, TwoViewOptions, TwoViews, watched


class SimSiamOptions(TwoViewOptions, frozen=True):
    """Options of SimSiam; defaults are those of the paper and the authors' code for ImageNet."""

    projector_hidden: tuple[int, ...] = Field(
        (2048, 2048), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(2048, ge=1, description="width of projector and predictor")
    predictor_hidden: tuple[int, ...] = Field((512,), description="widths of the predictor's hidden layers")
    constant_lr: bool = Field(True, description="keep the predictor's learning rate at its peak: it must keep up")
    joint_norm: bool = Field(False, description="whether BatchNorm sees all views of a kind as one batch")
    crop_scale: Share = Field((0.2, 1.0), description="share of the picture's area in a crop")
    strength: float = Field(0.5, ge=0, le=2.5, description="of that: brightness and contrast by 0.8 of it, hue by 0.2")


class SimSiam(TwoViews):
    """Backbone, projector with standardised output, and the predictor, whose last layer has no bias here."""

    Options = SimSiamOptions
    options: SimSiamOptions
    projector_out_norm = True

    def __init__(self, config: BackboneConfig, options: SimSiamOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        width = options.projector_width
        self.predictor = build_projector(width, options.predictor_hidden, width, options.projector_norm)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, in -1..1: the negative cosine, mean of both ways."""
        features, projections = self.embedded(self.pixels(batch))
        first, second = self.apart(self.predictor, projections)
        loss = (negative_cosine(first, projections[1]) + negative_cosine(second, projections[0])) / 2
        return {"loss": loss, **watched(features, projections[0])}

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights; the predictor's learning rate is not scheduled."""
        groups = [*standard_groups(self.encoder), *standard_groups(self.projector)]
        scheduled = not self.options.constant_lr
        return [*groups, *(replace(group, scheduled=scheduled) for group in standard_groups(self.predictor))]
