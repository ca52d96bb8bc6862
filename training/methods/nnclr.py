"""NNCLR: the nearest neighbour of a view, among earlier pictures, is nearer to the other view than to other pictures.

Dwibedi et al. 2021 (arXiv 2104.14548). Shapes: B pictures, K dimensions of projector and predictor.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.data.loader import BatchPlan
from granary.training.losses.pairs import info_nce
from granary.training.method import Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.projector import build_projector
from granary.training.models.queue import Queue, check_queue
from granary.training.two_views import BYOLViewOptions, TwoViews, watched


class NNCLROptions(BYOLViewOptions, frozen=True):
    """Options of NNCLR; defaults are the paper's for ImageNet, the views BYOL's."""

    temperature: float = Field(0.1, gt=0, description="divides the cosines")
    queue: int = Field(98304, ge=1, description="projections of earlier pictures, among which neighbours are found")
    projector_hidden: tuple[int, ...] = Field(
        (2048, 2048), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(256, ge=1, description="width of projector and predictor")
    predictor_hidden: tuple[int, ...] = Field((4096,), description="widths of the predictor's hidden layers")


class NNCLR(TwoViews):
    """Backbone, projector with standardised output, predictor, and the support set, a queue."""

    Options = NNCLROptions
    options: NNCLROptions
    projector_out_norm = True

    def __init__(self, config: BackboneConfig, options: NNCLROptions, known: object = None) -> None:
        super().__init__(config, options, known)
        width = options.projector_width
        self.predictor = build_projector(width, options.predictor_hidden, width, options.projector_norm)
        self.queue = Queue(options.queue, width)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> object:
        """Return what every method learns of the data. Raises UserError where the queue cannot hold a batch."""
        assert isinstance(options, NNCLROptions)
        check_queue(options.queue, plan.batch)
        return super().learn(config, options, plan, out)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, and keep the first views for the support set.

        Equation 3 with predictions: a neighbour of one view is compared with the other views of the whole batch; both
        ways, halved. There is no gradient through neighbours.
        """
        features, projections = self.embedded(self.pixels(batch))
        first, second = self.apart(self.predictor, projections)
        near_first, near_second = (self.queue.nearest(view) for view in projections)
        t = self.options.temperature
        loss = (info_nce(near_first, second, t) + info_nce(near_second, first, t)) / 2
        self.queue.add(projections[0], moment)
        return {"loss": loss, **watched(features, projections[0])}

    def after_step(self, moment: Moment) -> None:
        """Put the first views of the step into the support set."""
        self.queue.follow()
