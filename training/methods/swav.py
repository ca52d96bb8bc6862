"""SwAV: one view of a picture predicts to which prototypes another is assigned, all prototypes being used alike.

Caron et al. 2020 (arXiv 2006.09882). Shapes: B pictures, L smaller crops of each, V = 2 + L views, D width of the
projector's output, K prototypes, Q rows of the queue for each of the two large crops. Views are stacked view-major.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.training.data.collate import Part
from granary.training.losses.processes import gathered, scattered
from granary.training.losses.prototypes import swapped_prediction
from granary.training.losses.self_distillation import sinkhorn_knopp
from granary.training.method import Moment, ParameterGroup, standard_groups
from granary.training.models.backbone_config import BackboneConfig
from granary.training.two_views import MultiCropOptions, Share, TwoViews, watched


class SwAVOptions(MultiCropOptions, frozen=True):
    """Options of SwAV; defaults are those of the authors' code for ImageNet."""

    prototypes: int = Field(3000, ge=2, description="K, rows that pictures are assigned to")
    temperature: float = Field(0.1, gt=0, description="divides the cosines of a prediction")
    epsilon: float = Field(0.05, gt=0, description="divides the cosines of an assignment: smaller is sharper")
    iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp")
    freeze: int = Field(313, ge=0, description="first steps in which the prototypes stay as they are")
    queue: int = Field(
        0, ge=0, description="earlier pictures that are assigned with a batch, a multiple of it; for small batches"
    )
    queue_start: int = Field(0, ge=0, description="first step whose pictures are queued (authors: epoch 15)")
    crop_scale: Share = Field((0.14, 1.0), description="share of the picture's area in a crop")
    local_crops: int = Field(6, ge=0, description="smaller crops of a picture")


class SwAV(TwoViews):
    """Backbone, projector and prototypes, which are unit rows at every forward pass."""

    Options = SwAVOptions
    options: SwAVOptions
    queue: Tensor
    queued: Tensor

    def __init__(self, config: BackboneConfig, options: SwAVOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.prototypes = nn.Linear(options.projector_width, options.prototypes, bias=False)
        self._to_unit_rows()
        self.seen: list[Tensor] = []  # (2, B, D) of each part of this step
        if options.queue:
            self.register_buffer("queue", torch.zeros(2, options.queue, options.projector_width))
            self.register_buffer("queued", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch; BatchNorm of the projector sees large and small crops together."""
        kinds = ["image", "local"] if self.options.local_crops else ["image"]
        features = [self.apart(lambda views: self.encoder(views).cls, self.pixels(batch, kind)) for kind in kinds]
        rows = self.apart(self.projector, torch.cat(features))  # (V, B, D)
        wide = torch.promote_types(rows.dtype, torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            rows = F.normalize(rows.to(wide), dim=2)
            scores = self.prototypes(rows)  # (V, B, K)
            codes = self.codes(rows[:2].detach(), scores[:2].detach())
            loss = swapped_prediction(scores, codes, self.options.temperature)
        if moment.part == 0:
            self.seen.clear()
        self.seen.append(rows[:2].detach())
        return {"loss": loss, **watched(features[0], rows[0]), "teacher": codes[0]}

    @torch.no_grad()
    def codes(self, rows: Tensor, scores: Tensor) -> Tensor:
        """Return the assignments of both large crops, (2, B, K), together with those of the queue when it is full.

        Args:
            rows: (2, B, D), unit rows.
            scores: (2, B, K), their cosines to the prototypes.
        """
        options = self.options
        if options.queue and int(self.queued) >= options.queue:
            earlier = self.prototypes(scattered(self.queue.transpose(0, 1)).to(rows.dtype)).transpose(0, 1)
            scores = torch.cat([earlier, scores], dim=1)
        both = [sinkhorn_knopp(view, options.epsilon, options.iterations) for view in scores]
        return torch.stack(both)[:, -rows.shape[1] :]

    def after_step(self, moment: Moment) -> None:
        """Make the prototypes unit rows again; put this step's pictures before the earlier ones of the queue."""
        if moment.step >= self.options.freeze:
            self._to_unit_rows()
        if self.options.queue and moment.step >= self.options.queue_start:
            self._enqueue()
        self.seen.clear()

    @torch.no_grad()
    def _to_unit_rows(self) -> None:
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    @torch.no_grad()
    def _enqueue(self) -> None:
        new = gathered(torch.cat(self.seen, dim=1).transpose(0, 1).contiguous())[0].transpose(0, 1)  # (2, N, D)
        self.queue.copy_(torch.cat([new.to(self.queue.dtype), self.queue], dim=1)[:, : self.queue.shape[1]])
        self.queued.add_(new.shape[1])

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights; the prototypes begin late."""
        prototypes = ParameterGroup([self.prototypes.weight], True, start=self.options.freeze)
        return [*standard_groups(self.encoder), *standard_groups(self.projector), prototypes]
