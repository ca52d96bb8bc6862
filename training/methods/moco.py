"""MoCo: a picture's key is nearer to its query than the keys of other pictures; a slowly moving encoder makes the keys.

MoCo v2 (Chen et al. 2020, arXiv 2003.04297; MoCo: He et al. 2019, arXiv 1911.05722) compares with a queue of the latest
keys. MoCo v3 (Chen et al. 2021, arXiv 2104.02057) compares with the keys of the batch, both ways, and predicts them.

The authors' code of v2 shuffles the pictures of all processes before the key encoder, so that BatchNorm does not tell a
query which key shared a small batch with it. BatchNorm over all processes (`device.batch_norm: sync`) needs no shuffle.

Shapes: B pictures, K dimensions of the projector's output.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.data.loader import BatchPlan
from granary.training.losses.pairs import info_nce, queue_info_nce
from granary.training.method import Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.projector import build_projector
from granary.training.models.queue import Queue, check_queue
from granary.training.models.vit import VisionTransformer
from granary.training.two_views import BYOLViewOptions, Share, TargetOptions, TargetViews, watched


class MoCoOptions(TargetOptions, frozen=True):
    """Options of MoCo v2; defaults are those of the paper and the authors' code for ImageNet."""

    temperature: float = Field(0.2, gt=0, description="divides the cosines")
    queue: int = Field(65536, ge=1, description="keys of earlier pictures that a query is compared with")
    momentum: float = Field(0.999, ge=0, le=1, description="of the key encoder's average at step 0")
    final_momentum: float = Field(0.999, ge=0, le=1, description="at the last step, by a half cosine")
    projector_norm: bool = Field(False, description="whether the projector's hidden layers have BatchNorm")
    joint_norm: Literal[False] = Field(False, description="each encoder sees one view, so that there is no choice")
    crop_scale: Share = Field((0.2, 1.0), description="share of the picture's area in a crop")
    strength: float = Field(0.5, ge=0, le=2.5, description="of that: brightness and contrast by 0.8 of it, hue by 0.2")


class MoCo(TargetViews):
    """Query encoder, key encoder and queue of MoCo v2: the first view is the query, the second the key."""

    Options = MoCoOptions
    options: MoCoOptions

    def __init__(self, config: BackboneConfig, options: MoCoOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.queue = Queue(options.queue, options.projector_width)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> object:
        """Return what every method learns of the data. Raises UserError where the queue cannot hold a batch."""
        assert isinstance(options, MoCoOptions)
        check_queue(options.queue, plan.batch)
        return super().learn(config, options, plan, out)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, and keep its keys for the queue."""
        pixels = self.pixels(batch)
        features, queries = self.embedded(pixels[:1])
        (keys,) = self.targets(pixels[1:])
        loss = queue_info_nce(queries[0], keys, self.queue.rows, self.options.temperature)
        self.queue.add(keys, moment)
        return {"loss": loss, **watched(features, queries[0])}

    def after_step(self, moment: Moment) -> None:
        """Move the key encoder; put the keys of the step into the queue."""
        super().after_step(moment)
        self.queue.follow()


class MoCoV3Options(BYOLViewOptions, TargetOptions, frozen=True):
    """Options of MoCo v3; defaults are those of the paper and the authors' code for Vision Transformers on ImageNet."""

    temperature: float = Field(0.2, gt=0, description="divides the cosines (the authors' ResNet-50: 1)")
    momentum: float = Field(0.99, ge=0, le=1, description="of the key encoder's average at step 0")
    projector_hidden: tuple[int, ...] = Field(
        (4096, 4096), description="widths of the projector's hidden layers (the authors' ResNet-50: 4096)"
    )
    projector_width: int = Field(256, ge=1, description="width of projector and predictor")
    predictor_hidden: tuple[int, ...] = Field((4096,), description="widths of the predictor's hidden layers")
    freeze_patches: bool = Field(
        False, description="keep the initial patch embedding: it makes a vit's training stable"
    )


class MoCoV3(TargetViews):
    """Encoder, its average the key encoder, and a predictor; projections and predictions are standardised."""

    Options = MoCoV3Options
    MODEL = {"pos_embed": "sincos", "layer_scale": 0.0}  # noqa: RUF012 read only
    options: MoCoV3Options
    projector_out_norm = True

    def __init__(self, config: BackboneConfig, options: MoCoV3Options, known: object = None) -> None:
        super().__init__(config, options, known)
        width = options.projector_width
        self.predictor = build_projector(width, options.predictor_hidden, width, options.projector_norm, out_norm=True)
        if options.freeze_patches:
            if not isinstance(self.encoder, VisionTransformer):
                raise UserError(
                    f"options.freeze_patches: True is not right: a {config.kind} has no patches; leave it out"
                )
            self.encoder.embed.requires_grad_(False)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return 2 t (InfoNCE of the first predictions and second keys + that of the second and first)."""
        pixels, t = self.pixels(batch), self.options.temperature
        features, projections = self.embedded(pixels)
        first, second = self.apart(self.predictor, projections)
        first_keys, second_keys = self.targets(pixels)
        loss = 2 * t * (info_nce(first, second_keys, t) + info_nce(second, first_keys, t))
        return {"loss": loss, **watched(features, projections[0])}
