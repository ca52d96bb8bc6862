"""What joint-embedding methods share: changed views of a picture, a backbone and a projector.

Shapes: B pictures, V views of a kind, D width of the backbone, K of the projector's output. Views are stacked
view-major, (V, B, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.method import Method, Moment
from granary.training.models.average import average
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build
from granary.training.models.projector import build_projector
from granary.training.schedules import cosine

Share = tuple[float, float]


class ViewOptions(OptionGroup, frozen=True):
    """Options of two views; defaults are SimCLR's for ImageNet (arXiv 2002.05709)."""

    crop_size: int | None = Field(None, ge=1, description="pixels of a crop's side; default the model's")
    crop_scale: Share = Field((0.08, 1.0), description="share of the picture's area in a crop")
    flip: float = Field(0.5, ge=0, le=1, description="chance that a view is mirrored")
    jitter: float = Field(0.8, ge=0, le=1, description="chance that colours are changed")
    strength: float = Field(1.0, ge=0, le=2.5, description="of that: brightness and contrast by 0.8 of it, hue by 0.2")
    saturation: float = Field(0.8, ge=0, description="of that: saturation by this times strength")
    grey: float = Field(0.2, ge=0, le=1, description="chance that a view is grey")
    blur: float = Field(0.5, ge=0, le=1, description="chance that a view is blurred")
    second_blur: float | None = Field(None, ge=0, le=1, description="that of the second view; default the same")
    solarize: float = Field(0.0, ge=0, le=1, description="chance that a view is solarized")
    second_solarize: float | None = Field(None, ge=0, le=1, description="that of the second view; default the same")


class TwoViewOptions(ViewOptions, frozen=True):
    """Options of two views and the projector."""

    projector_hidden: tuple[int, ...] = Field(
        (2048,), description="widths of the projector's hidden layers; none, [], is a linear projector"
    )
    projector_width: int = Field(128, ge=1, description="width of its output")
    projector_norm: bool = Field(True, description="whether its hidden layers have BatchNorm")
    joint_norm: bool = Field(True, description="whether BatchNorm sees all views of a kind as one batch")


class MultiCropOptions(TwoViewOptions, frozen=True):
    """Options of methods that take smaller crops too (multi-crop, Caron et al. 2020, arXiv 2006.09882)."""

    local_crops: int = Field(0, ge=0, description="smaller crops of a picture")
    local_size: int = Field(96, ge=1, description="pixels of a smaller crop's side")
    local_scale: Share = Field((0.05, 0.14), description="share of the picture's area in a smaller crop")


class BYOLViewOptions(TwoViewOptions, frozen=True):
    """Options whose defaults are the views of BYOL (arXiv 2006.07733, appendix B), each with a BatchNorm of its own."""

    strength: float = Field(0.5, ge=0, le=2.5, description="of that: brightness and contrast by 0.8 of it, hue by 0.2")
    saturation: float = Field(0.4, ge=0, description="of that: saturation by this times strength")
    blur: float = Field(1.0, ge=0, le=1, description="chance that a view is blurred")
    second_blur: float | None = Field(0.1, ge=0, le=1, description="that of the second view; null the same")
    second_solarize: float | None = Field(0.2, ge=0, le=1, description="chance that the second view is solarized")
    joint_norm: bool = Field(False, description="whether BatchNorm sees all views of a kind as one batch")


class TargetOptions(TwoViewOptions, frozen=True):
    """Options of methods with a target, the moving average of backbone and projector."""

    momentum: float = Field(0.996, ge=0, le=1, description="of the target's average at step 0")
    final_momentum: float = Field(1.0, ge=0, le=1, description="at the last step, by a half cosine")


class ChangedViews(Method):
    """A backbone, which is evaluated, and views of each picture with changed colours for it."""

    Options: ClassVar[type[OptionGroup]] = ViewOptions
    MODEL = {"class_token": False, "layer_scale": 0.0}  # noqa: RUF012 read only
    columns = ("image",)
    evaluated = "encoder"
    options: ViewOptions

    def __init__(self, config: BackboneConfig, options: ViewOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        _check(config, options)
        self.options = options
        self.encoder = build(config)

    def views(self) -> dict[str, Crop]:
        """Two crops, and the smaller ones."""
        options = self.options
        views = {"image": Crop(2, options.crop_size or self.config.img_size, options.crop_scale)}
        if isinstance(options, MultiCropOptions) and options.local_crops:
            views["local"] = Crop(options.local_crops, options.local_size, options.local_scale)
        return views

    def pixels(self, batch: Part, name: str = "image") -> Tensor:
        """Return the views of a kind with changed colours, normalised: (V, B, 3, S, S).

        Args:
            batch: with NAME (B, V, S, S, 3) uint8 and NAME_draws (B, V, 16).
            name: of the kind.
        """
        views, draws = batch[name].transpose(0, 1), batch[f"{name}_draws"].transpose(0, 1)
        kinds = [self.changes(view) for view in range(len(views))]
        if all(kind == kinds[0] for kind in kinds):
            changed = photometric(to_unit(views.flatten(0, 1)), draws.flatten(0, 1), kinds[0])
        else:
            changed = torch.cat([photometric(to_unit(v), d, k) for v, d, k in zip(views, draws, kinds, strict=True)])
        return normalised(changed, self.config.mean, self.config.std).unflatten(0, views.shape[:2])

    def changes(self, view: int) -> Photometric:
        """Return what is done to the colours of a view, by its number among those of its kind."""
        options, s = self.options, self.options.strength
        second = view == 1
        return Photometric(
            flip=options.flip,
            jitter=options.jitter,
            brightness=0.8 * s,
            contrast=0.8 * s,
            saturation=options.saturation * s,
            hue=0.2 * s,
            grey=options.grey,
            blur=options.second_blur if second and options.second_blur is not None else options.blur,
            solarize=options.second_solarize if second and options.second_solarize is not None else options.solarize,
        )


class TwoViews(ChangedViews):
    """With a projector to the space of the loss."""

    Options = TwoViewOptions
    projector_out_norm = False  # whether the projector's output is standardised
    options: TwoViewOptions

    def __init__(self, config: BackboneConfig, options: TwoViewOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.projector = build_projector(
            config.width,
            options.projector_hidden,
            options.projector_width,
            options.projector_norm,
            self.projector_out_norm,
        )

    def embedded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (V, B, D) and projections (V, B, K) of views (V, B, 3, S, S)."""
        features = self.apart(lambda views: self.encoder(views).cls, pixels)
        return features, self.apart(self.projector, features)

    def apart(self, module: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
        """Return what a module says of views (V, B, ...), all as one batch or, without `joint_norm`, each in turn."""
        if self.options.joint_norm:
            return module(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return torch.stack([module(view) for view in views])


class TargetViews(TwoViews):
    """With a target: the moving average of backbone and projector, whose projections have no gradient.

    What is evaluated is the backbone that is trained. The target is in training mode, as in the code of BYOL and MoCo:
    its BatchNorm normalises by the batch.
    """

    Options = TargetOptions
    options: TargetOptions

    def __init__(self, config: BackboneConfig, options: TargetOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> Tensor:
        """Return the target's projections (V, B, K) of views (V, B, 3, S, S)."""
        features = self.apart(lambda views: self.target_encoder(views).cls, pixels)
        return self.apart(self.target_projector, features)

    def after_step(self, moment: Moment) -> None:
        """Move the target: target <- m target + (1 - m) what is trained, m a half cosine."""
        momentum = cosine(self.options.momentum, self.options.final_momentum, moment.progress)
        average(self.target_encoder, self.encoder, momentum)
        average(self.target_projector, self.projector, momentum)


def watched(features: Tensor, projections: Tensor) -> dict[str, Tensor]:
    """Return what the collapse alarm looks at, detached: of the first view, features and projections.

    Args:
        features: (V, B, D).
        projections: (B, K).
    """
    return {"features": features[0].detach(), "projections": projections.detach()}


def _check(config: BackboneConfig, options: ViewOptions) -> None:
    """Raise UserError for crops that cannot be cut into patches."""
    sizes = {"crop_size": options.crop_size}
    if isinstance(options, MultiCropOptions) and options.local_crops:
        sizes["local_size"] = options.local_size
    for name, side in sizes.items():
        if side and config.kind == "vit" and side % config.patch_size:
            raise UserError(
                f"options.{name}: {side} is not right: it must be a multiple of patch_size, {config.patch_size}"
            )
