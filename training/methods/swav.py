"""SwAV: one view of a picture predicts to which prototypes another is assigned, all prototypes being used alike.

Caron et al. 2020 (arXiv 2006.09882). Shapes: B pictures, L smaller crops of each, V = 2 + L views, D width of the
projector's output, K prototypes, Q rows of the queue of each of the two large crops. Views are stacked view-major.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.data.loader import BatchPlan
from granary.training.losses.processes import scattered
from granary.training.losses.prototypes import swapped_prediction
from granary.training.losses.self_distillation import entropies, sinkhorn_knopp
from granary.training.method import Moment, ParameterGroup, standard_groups
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.queue import Queue, check_queue
from granary.training.two_views import MultiCropOptions, Share, TwoViews, watched

Teach = Callable[[Tensor], Tensor]  # see `SwAV.targets`


class SwAVOptions(MultiCropOptions, frozen=True):
    """Options of SwAV; defaults are those of the authors' code for ImageNet."""

    prototypes: int = Field(3000, ge=2, description="K, rows that pictures are assigned to")
    temperature: float = Field(0.1, gt=0, description="divides the cosines of a prediction")
    epsilon: float = Field(0.05, gt=0, description="divides the cosines of an assignment: smaller is sharper")
    iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp")
    freeze: int = Field(313, ge=0, description="first steps in which the prototypes stay as they are")
    queue: int = Field(
        0, ge=0, description="Q, earlier pictures that are assigned with a batch; 0: none; for small batches"
    )
    queue_start: int = Field(0, ge=0, description="first step that uses the queue (authors: from epoch 15 on)")
    crop_scale: Share = Field((0.14, 1.0), description="share of the picture's area in a crop")
    local_crops: int = Field(6, ge=0, description="smaller crops of a picture")


class SwAV(TwoViews):
    """Backbone, projector and prototypes, which are unit rows at every forward pass."""

    Options = SwAVOptions
    options: SwAVOptions

    def __init__(self, config: BackboneConfig, options: SwAVOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.prototypes = nn.Linear(options.projector_width, options.prototypes, bias=False)
        self._to_unit_rows()
        count = 2 if options.queue else 0
        self.queues = nn.ModuleList(Queue(options.queue, options.projector_width) for _ in range(count))

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> object:
        """Return what every method learns of the data. Raises UserError where a queue cannot hold a batch."""
        assert isinstance(options, SwAVOptions)
        if options.queue:
            check_queue(options.queue, plan.batch)
        return super().learn(config, options, plan, out)

    def forward(self, batch: Part, moment: Moment, teach: Teach | None = None) -> dict[str, Tensor]:
        """Return the loss of a batch; BatchNorm of the projector sees large and small crops together.

        Args:
            batch, moment: see `Method.forward`.
            teach: gives the codes of large crops in the place of `codes`; `kl` is then what is left to learn.
        """
        kinds = ["image", "local"] if self.options.local_crops else ["image"]
        pixels = [self.pixels(batch, kind) for kind in kinds]
        features = [self.apart(lambda views: self.encoder(views).cls, views) for views in pixels]
        rows, scores = self.scores(torch.cat(features))
        codes = self.codes(scores[:2].detach(), moment) if teach is None else teach(pixels[0])
        loss = swapped_prediction(scores, codes, self.options.temperature)
        for queue, view in zip(self._queues(), rows[:2], strict=False):
            queue.add(view, moment)
        output = {"loss": loss, **watched(features[0], rows[0]), "teacher": codes[0]}
        return output if teach is None else {**output, "kl": loss.detach() - entropies(codes).mean()}

    def scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit rows (V, B, D) that features (V, B, width) are projected to, and their cosines (V, B, K)."""
        rows = self.apart(self.projector, features)
        wide = torch.promote_types(rows.dtype, torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            rows = F.normalize(rows.to(wide), dim=2)
            return rows, self.prototypes(rows)

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> Tensor:
        """Return the assignments of large crops (2, B, 3, S, S) alone: (2, B, K), without a queue."""
        return self._assigned(self.scores(self.apart(lambda views: self.encoder(views).cls, pixels))[1])

    @torch.no_grad()
    def codes(self, scores: Tensor, moment: Moment) -> Tensor:
        """Return the assignments of both large crops, (2, B, K), in training together with those of their queues.

        Args:
            scores: (2, B, K), cosines of the crops to the prototypes.
            moment: of the step.
        """
        options, count = self.options, scores.shape[1]
        if self.queues and self.training and moment.step >= options.queue_start:
            with torch.autocast(scores.device.type, enabled=False):
                earlier = [self.prototypes(scattered(queue.rows).to(scores.dtype)) for queue in self._queues()]
            scores = torch.cat([torch.stack(earlier), scores], dim=1)
        return self._assigned(scores)[:, -count:]

    def _assigned(self, scores: Tensor) -> Tensor:
        """Return the assignments of crops, each kind alone: (V, R, K) cosines -> (V, R, K)."""
        options = self.options
        return torch.stack([sinkhorn_knopp(view, options.epsilon, options.iterations) for view in scores])

    def after_step(self, moment: Moment) -> None:
        """Make the prototypes unit rows again; put this step's pictures in the place of the oldest of the queues."""
        if moment.step >= self.options.freeze and self.prototypes.weight.requires_grad:
            self._to_unit_rows()
        for queue in self._queues():
            queue.follow()

    @torch.no_grad()
    def _to_unit_rows(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def _queues(self) -> list[Queue]:
        return [queue for queue in self.queues if isinstance(queue, Queue)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights; the prototypes begin late."""
        prototypes = ParameterGroup([self.prototypes.weight], True, start=self.options.freeze)
        return [*standard_groups(self.encoder), *standard_groups(self.projector), prototypes]
