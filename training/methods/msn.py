"""MSN: a view with dropped patches, and small crops, are assigned to the prototypes of a whole view.

Assran et al. 2022 (arXiv 2204.07141). The model to use is the target encoder, the average of the trained one, as in the
authors' code. Their projector has GELU where this one has ReLU. Shapes: B pictures, V = 1 + L anchor views of each,
of which L are small (focal), D width of the projector's output, K prototypes. Views are stacked view-major.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from granary.training.data.collate import Part
from granary.training.losses.prototypes import cosines, mean_entropy_gap, sharpened
from granary.training.losses.self_distillation import entropies, soft_cross_entropy
from granary.training.method import Moment, ParameterGroup, standard_groups
from granary.training.models.average import average
from granary.training.models.vit_config import ViTConfig
from granary.training.schedules import linear
from granary.training.two_views import MultiCropOptions, Share, TwoViews

PATCHES = 1  # purpose of random draws
Teach = Callable[[Tensor], tuple[Tensor, Tensor]]  # see `MSN.targets`


class MSNOptions(MultiCropOptions, frozen=True):
    """Options of MSN; defaults are those of the authors' code for ViT-S/16."""

    prototypes: int = Field(1024, ge=2, description="K, rows that views are assigned to")
    temperature: float = Field(0.1, gt=0, description="divides the cosines of an assignment")
    sharpening: float = Field(0.25, gt=0, le=1, description="T: targets are assignments to the power of 1 / T")
    sinkhorn: int = Field(3, ge=0, description="iterations of Sinkhorn-Knopp on the targets; 0: none, as in the paper")
    me_max: float = Field(1.0, ge=0, description="lambda, weight of the entropy of the mean assignment of anchors")
    drop: float = Field(0.15, ge=0, lt=1, description="share of the patches that the large anchor view goes without")
    momentum: float = Field(0.996, ge=0, le=1, description="of the target's average at step 0, linear to 1")
    projector_hidden: tuple[int, ...] = Field(
        (2048, 2048), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(256, ge=1, description="width of its output, D")
    crop_scale: Share = Field((0.3, 1.0), description="share of the picture's area in a crop")
    local_crops: int = Field(10, ge=0, description="L, smaller crops of a picture")
    local_scale: Share = Field((0.05, 0.3), description="share of the picture's area in a smaller crop")
    strength: float = Field(0.5, ge=0, le=2.5, description="of that: brightness and contrast by 0.8 of it, hue by 0.2")


class MSN(TwoViews):
    """Encoder and projector, their average the target, and prototypes of any length."""

    Options = MSNOptions
    MODEL = {"layer_scale": 0.0}  # noqa: RUF012 read only
    kinds = ("vit",)
    evaluated = "target"
    options: MSNOptions
    config: ViTConfig

    def __init__(self, config: ViTConfig, options: MSNOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        bound = options.projector_width**-0.5
        rows = torch.empty(options.prototypes, options.projector_width).uniform_(-bound, bound)
        self.prototypes = nn.Parameter(rows)

    def forward(self, batch: Part, moment: Moment, teach: Teach | None = None) -> dict[str, Tensor]:
        """Return the loss of a batch and its two terms, `me_max` without its weight.

        Args:
            batch, moment: see `Method.forward`.
            teach: gives the targets of whole views in the place of `targets`; `kl` is then what is left to learn.
        """
        options = self.options
        whole, anchor = self.pixels(batch)
        targets, features = (teach or self.targets)(whole)
        seen = self.encoder(anchor, keep=self.kept(anchor, moment)).cls
        views = [self.projector(seen)[None]]
        if options.local_crops:
            views.append(self.embedded(self.pixels(batch, "local"))[1])
        scores = cosines(torch.cat(views), self.prototypes)  # (V, B, K)
        entropy = soft_cross_entropy(scores, targets, options.temperature).mean()
        me_max = mean_entropy_gap(scores.flatten(0, 1), options.temperature)
        loss = entropy + options.me_max * me_max
        output = {"loss": loss, "cross_entropy": entropy, "me_max": me_max, "features": features, "teacher": targets}
        if teach is not None:
            output |= {"kl": entropy.detach() - entropies(targets).mean(), "features": seen.detach()}
        return output

    @torch.no_grad()
    def targets(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets (B, K) of whole views (B, 3, S, S), and their features."""
        options, features = self.options, self.target(whole).cls
        scores = cosines(self.target_projector(features), self.prototypes)
        return sharpened(scores, options.temperature, options.sharpening, options.sinkhorn), features

    def kept(self, pixels: Tensor, moment: Moment) -> Tensor:
        """Return the patches that views (B, 3, S, S) keep, (B, K) int64: one choice a step, as in the authors' code."""
        patches = (pixels.shape[2] // self.config.patch_size) ** 2
        order = moment.generator(PATCHES, shared=True).permutation(patches)
        kept = np.sort(order[: max(1, int(patches * (1 - self.options.drop)))])
        return torch.from_numpy(kept).to(pixels.device, non_blocking=True).expand(len(pixels), -1)

    def after_step(self, moment: Moment) -> None:
        """Move the target: target <- m target + (1 - m) encoder, m linear from `momentum` to 1."""
        momentum = linear(self.options.momentum, 1.0, moment.progress)
        average(self.target, self.encoder, momentum)
        average(self.target_projector, self.projector, momentum)

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights but the target's; no decay of biases, norms and prototypes."""
        prototypes = ParameterGroup([self.prototypes], False)
        return [*standard_groups(self.encoder), *standard_groups(self.projector), prototypes]
