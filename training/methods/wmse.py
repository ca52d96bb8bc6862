"""W-MSE: views of a picture are near after each was whitened, so that no dimension can collapse.

Ermolov et al. 2020 (arXiv 2007.06346). The rows of a batch are whitened in random sub-batches. Shapes: V views, N
pictures of all processes, K width of the projector's output.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.losses.processes import gathered
from granary.training.losses.redundancy import sub_batches, wmse
from granary.training.method import Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.two_views import TwoViewOptions, TwoViews, watched

ORDERS = 1  # purpose of random draws


class WMSEOptions(TwoViewOptions, frozen=True):
    """Options of W-MSE; defaults are those of the authors' code."""

    samples: int = Field(2, ge=2, description="V, views of a picture: 2 or 4 in the paper")
    sub_batch: int = Field(128, ge=2, description="rows that are whitened together, of all processes; above K")
    iterations: int = Field(1, ge=1, description="times that a batch is cut into other sub-batches")
    shrinkage: float = Field(0.0, ge=0, lt=1, description="share of the identity in the covariance")
    unit_length: bool = Field(True, description="whether whitened rows are compared at unit length: 2 - 2 cos")
    projector_hidden: tuple[int, ...] = Field(
        (1024,), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(64, ge=1, description="width of its output, K; half of a sub-batch in the paper")


class WMSE(TwoViews):
    """Backbone and projector, whose output is whitened."""

    Options = WMSEOptions
    options: WMSEOptions

    def __init__(self, config: BackboneConfig, options: WMSEOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        if options.sub_batch <= options.projector_width:
            raise UserError(
                f"options.sub_batch: {options.sub_batch} is not right: the covariance of so few rows of "
                f"{options.projector_width} dimensions is singular; give more than options.projector_width"
            )

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> object:
        """Return what every method learns of the data. Raises UserError where a batch is less than a sub-batch."""
        assert isinstance(options, WMSEOptions)
        if options.sub_batch > plan.batch:
            raise UserError(f"options.sub_batch: {options.sub_batch} is not right: a batch has {plan.batch} pictures")
        return super().learn(config, options, plan, out)

    def views(self) -> dict[str, Crop]:
        """As many crops as there are samples."""
        return {name: replace(crop, count=self.options.samples) for name, crop in super().views().items()}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, whose rows are put into sub-batches by numbers of this moment."""
        options = self.options
        features, projected = self.embedded(self.pixels(batch))
        rows = gathered(projected.transpose(0, 1))[0].transpose(0, 1)  # (V, N, K)
        generator = moment.generator(ORDERS, moment.part, shared=True)
        try:
            parts = sub_batches(rows.shape[1], options.sub_batch, options.iterations, generator)
        except ValueError as error:
            raise UserError(f"options.sub_batch: {error}") from error
        loss = wmse(rows, parts.to(rows.device, non_blocking=True), options.unit_length, options.shrinkage)
        return {"loss": loss, **watched(features, projected[0])}
