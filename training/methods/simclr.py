"""SimCLR: two changed views of a picture are nearer to one another than to those of all others of the batch.

Chen et al. 2020 (arXiv 2002.05709). Shapes: B pictures, V views of a kind, D width of the backbone, K of the
projector's output. With smaller local crops (multi-crop, Caron et al. 2020, arXiv 2006.09882) each is a pair with each
of the two large ones too.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.losses.pairs import nt_xent
from granary.training.method import Method, Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build
from granary.training.models.projector import build_projector


class SimCLROptions(Options, frozen=True):
    """Options of SimCLR; defaults are the paper's for ImageNet."""

    temperature: float = Field(0.1, gt=0, description="divides the cosines")
    projector_hidden: tuple[int, ...] = Field(
        (2048,), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(128, ge=1, description="width of its output")
    projector_norm: bool = Field(True, description="whether its hidden layers have BatchNorm")
    crop_size: int | None = Field(None, ge=1, description="pixels of a crop's side; default the model's")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the picture's area in a crop")
    local_crops: int = Field(0, ge=0, description="smaller crops, each a pair with both large ones")
    local_size: int = Field(96, ge=1, description="pixels of a smaller crop's side")
    local_scale: tuple[float, float] = Field((0.05, 0.14), description="share of the picture's area in a smaller crop")
    flip: float = Field(0.5, ge=0, le=1, description="chance that a view is mirrored")
    jitter: float = Field(0.8, ge=0, le=1, description="chance that colours are changed")
    strength: float = Field(
        1.0, ge=0, le=2.5, description="of that: brightness, contrast and saturation change by 0.8 of it, hue by 0.2"
    )
    grey: float = Field(0.2, ge=0, le=1, description="chance that a view is grey")
    blur: float = Field(0.5, ge=0, le=1, description="chance that a view is blurred")


class SimCLR(Method):
    """A backbone, what is evaluated, and a projector to the space of the loss."""

    Options = SimCLROptions
    MODEL = {"class_token": False, "layer_scale": 0.0}  # noqa: RUF012 read only
    columns = ("image",)
    evaluated = "encoder"

    def __init__(self, config: BackboneConfig, options: SimCLROptions, known: object = None) -> None:
        super().__init__(config, options, known)
        _check(config, options)
        self.options = options
        self.encoder = build(config)
        self.projector = build_projector(
            config.width, options.projector_hidden, options.projector_width, options.projector_norm
        )

    def views(self) -> dict[str, Crop]:
        """Two large crops, and the smaller ones."""
        options = self.options
        views = {"image": Crop(2, options.crop_size or self.config.img_size, options.crop_scale)}
        if options.local_crops:
            views["local"] = Crop(options.local_crops, options.local_size, options.local_scale)
        return views

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, its mean over pairs of views of which one is large."""
        features, (first, second) = self.embedded(batch, "image")
        pairs = [(first, second)]
        if self.options.local_crops:
            pairs += [(large, small) for small in self.embedded(batch, "local")[1] for large in (first, second)]
        losses = [nt_xent(*pair, self.options.temperature) for pair in pairs]
        return {"loss": torch.stack(losses).mean(), "features": features.detach()}

    def embedded(self, batch: Part, name: str) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return features of the first view of a kind, (B, D), and the projections of all its views, V of (B, K).

        All views of a kind are one batch for BatchNorm, as in the paper.
        """
        count = batch[name].shape[1]
        features = self.encoder(self.changed(batch[name], batch[f"{name}_draws"])).cls
        return features[::count], self.projector(features).unflatten(0, (-1, count)).unbind(dim=1)

    def changed(self, views: Tensor, draws: Tensor) -> Tensor:
        """Return views with changed colours, normalised.

        Args:
            views: (B, V, S, S, 3) uint8.
            draws: (B, V, 16).

        Returns:
            (B * V, 3, S, S), the views of a picture together.
        """
        options, s = self.options, self.options.strength
        changes = Photometric(
            flip=options.flip,
            jitter=options.jitter,
            brightness=0.8 * s,
            contrast=0.8 * s,
            saturation=0.8 * s,
            hue=0.2 * s,
            grey=options.grey,
            blur=options.blur,
        )
        pixels = photometric(to_unit(views.flatten(0, 1)), draws.flatten(0, 1), changes)
        return normalised(pixels, self.config.mean, self.config.std)


def _check(config: BackboneConfig, options: SimCLROptions) -> None:
    """Raise UserError for crops that cannot be cut into patches."""
    sizes = {"crop_size": options.crop_size, "local_size": options.local_size if options.local_crops else None}
    for name, side in sizes.items():
        if side and config.kind == "vit" and side % config.patch_size:
            raise UserError(
                f"options.{name}: {side} is not right: it must be a multiple of patch_size, {config.patch_size}"
            )
