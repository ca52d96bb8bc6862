"""VICReg: two views of a picture are near, each dimension varies, and no two vary together.

Bardes et al. 2021 (arXiv 2105.04906).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from granary.training.data.collate import Part
from granary.training.losses.redundancy import vicreg_terms
from granary.training.method import Moment
from granary.training.two_views import TwoViewOptions, TwoViews, watched


class VICRegOptions(TwoViewOptions, frozen=True):
    """Options of VICReg; those of loss and projector have the paper's values for ImageNet."""

    invariance: float = Field(25.0, ge=0, description="weight of the squared distance of two views")
    variance: float = Field(25.0, ge=0, description="weight of what standard deviations lack to 1")
    covariance: float = Field(1.0, ge=0, description="weight of the covariances of different dimensions")
    projector_hidden: tuple[int, ...] = Field(
        (8192, 8192), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(8192, ge=1, description="width of its output, K")
    joint_norm: bool = Field(False, description="whether BatchNorm sees both views as one batch")


class VICReg(TwoViews):
    """Backbone and projector under variance, invariance and covariance."""

    Options = VICRegOptions
    options: VICRegOptions

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch and its three terms, without their weights."""
        features, (first, second) = self.embedded(self.pixels(batch))
        terms, options = vicreg_terms(first, second), self.options
        loss = (
            options.invariance * terms.invariance
            + options.variance * terms.variance
            + options.covariance * terms.covariance
        )
        return {"loss": loss, **terms._asdict(), **watched(features, first)}
