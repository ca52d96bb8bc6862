"""Barlow Twins: two views of a picture agree in each dimension, and no two dimensions say the same.

Zbontar et al. 2021 (arXiv 2103.03230). Its colours of two different views are in configs/train/barlow_resnet50.yaml.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from granary.training.data.collate import Part
from granary.training.losses.redundancy import barlow_terms
from granary.training.method import Moment, ParameterGroup, standard_groups
from granary.training.two_views import TwoViewOptions, TwoViews, watched


class BarlowOptions(TwoViewOptions, frozen=True):
    """Options of Barlow Twins; those of loss and projector have the authors' values for ImageNet."""

    redundancy: float = Field(0.0051, ge=0, description="lambda, weight of the correlations of different dimensions")
    bias_lr: float = Field(
        1.0, gt=0, description="factor of the learning rate of biases and norms (authors, with LARS: 0.024)"
    )
    projector_hidden: tuple[int, ...] = Field(
        (8192, 8192), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(8192, ge=1, description="width of its output, K")
    joint_norm: bool = Field(False, description="whether BatchNorm sees both views as one batch")


class BarlowTwins(TwoViews):
    """Backbone and projector under the cross-correlation of two views."""

    Options = BarlowOptions
    options: BarlowOptions

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch and its two terms: `redundancy` is without its weight."""
        features, (first, second) = self.embedded(self.pixels(batch))
        terms = barlow_terms(first, second)
        loss = terms.invariance + self.options.redundancy * terms.redundancy
        return {"loss": loss, **terms._asdict(), **watched(features, first)}

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights; biases and norms without decay and with a learning rate of their own."""
        decayed, plain = standard_groups(self)
        return [decayed, ParameterGroup(plain.params, False, self.options.bias_lr)]
