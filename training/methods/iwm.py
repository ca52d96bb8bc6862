"""IWM, image world models: I-JEPA whose predictor is told how source and target differ, and applies it to features.

Garrido et al. 2024, "Learning and Leveraging World Models in Visual Representation Learning" (arXiv 2403.00504). Both
views are the same crop; the target's colours are changed, the source's too, by numbers of its own, and some of it is
lost: it may be blurred, grey or solarized. The action says what must be done to the source's features. A deep predictor
can do it, and features keep colours (equivariance); with a shallow one they forget them (invariance).

Shapes as in `granary.training.methods.ijepa`; M is 1: the union of all blocks is predicted in one pass.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.augment import (
    NEEDED,
    Changes,
    Photometric,
    changed,
    factors,
    normalised,
    parameters,
    to_unit,
)
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.masking.block_union import draw_unions, union_blocks
from granary.training.masking.multi_block import MultiBlock
from granary.training.method import Moment
from granary.training.methods.ijepa import IJEPA, PLACES, SIZES, PredictionOptions, prediction_loss
from granary.training.models.conditioned_predictor import ConditionedPredictor, Conditioning
from granary.training.models.vit import gather_tokens
from granary.training.models.vit_config import ViTConfig

ACTION = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarize")  # the numbers of an action
CHANGES = ("flip", "jitter", *ACTION[:4], "grey", "blur", "sigma", "solarize")  # options that are Photometric's


class IWMOptions(PredictionOptions, frozen=True):
    """Options of IWM; defaults are the paper's equivariant model (18 blocks of 384), the rest as I-JEPA's."""

    conditioning: Conditioning = Field(
        "feature",
        description="feature: an MLP mixes the action into mask tokens; sequence: it is tokens; none: it is unknown",
    )
    predictor_depth: int = Field(18, ge=1, description="blocks of the predictor (paper: 18 equivariant, 12 invariant)")
    loss: Literal["smooth_l1", "l2"] = Field("l2", description="l2: the paper; smooth_l1: as I-JEPA's authors' code")
    flip: float = Field(0.5, ge=0, le=1, description="chance that both views are mirrored")
    jitter: float = Field(0.8, ge=0, le=1, description="chance that colours are changed, of each view")
    brightness: float = Field(0.4, ge=0, description="strength of the change of brightness")
    contrast: float = Field(0.4, ge=0, description="strength of the change of contrast")
    saturation: float = Field(0.2, ge=0, description="strength of the change of saturation")
    hue: float = Field(0.1, ge=0, le=0.5, description="strength of the change of hue, in turns")
    blur: float = Field(0.2, ge=0, le=1, description="chance that the source is blurred")
    sigma: tuple[float, float] = Field((0.1, 2.0), description="least and largest blur in pixels")
    grey: float = Field(0.2, ge=0, le=1, description="chance that the source is grey")
    solarize: float = Field(0.1, ge=0, le=1, description="chance that the source is solarized")


class Views(NamedTuple):
    """Two views of the same crops, and what lies between them.

    Args:
        source, target: (B, 3, S, S), normalised.
        actions: (B, 7), see `action`.
    """

    source: Tensor
    target: Tensor
    actions: Tensor


class IWM(IJEPA):
    """Context encoder f, its average the target encoder, and the predictor, a model of what changes do to features."""

    Options = IWMOptions
    options: IWMOptions
    predictor: ConditionedPredictor

    def __init__(self, config: ViTConfig, options: IWMOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        if self.predictor.mixed is not None:
            self.predictor.mixed.restart()  # the other linear layers begin smaller

    def build_blocks(self) -> MultiBlock:
        """Return how blocks are drawn. Raises UserError where they do not fit the grid."""
        options = self.options
        try:
            return union_blocks(self.config.grid, options.targets, options.target_scale, options.target_aspect)
        except ValueError as error:
            raise UserError(f"options.target_scale: {list(options.target_scale)} is not right: {error}") from error

    def build_predictor(self) -> ConditionedPredictor:
        """Return the predictor with its initial weights."""
        options = self.options
        heads = options.predictor_heads or self.config.heads
        sizes = options.predictor_width, options.predictor_depth, heads
        return ConditionedPredictor(self.config, *sizes, len(ACTION), options.conditioning)

    def views(self) -> dict[str, Crop]:
        """One random crop, with numbers for the changes of both views."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale, draws=2 * NEEDED)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch under masks drawn for this moment."""
        predicted, truth, features = self.compare_views(self.pair(batch), *self.masks(batch, moment))
        return {"loss": prediction_loss(predicted, truth, self.options.loss), "features": features}

    def masks(self, batch: Part, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the masks of a batch, see `compare_views`: those of other pictures and processes change none."""
        pictures = [moment.picture_generator(identity, PLACES) for identity in batch["id"]]
        seen, targets = draw_unions(self.blocks, moment.generator(SIZES, shared=True), pictures)
        device = batch["image"].device
        return torch.from_numpy(seen).to(device), torch.from_numpy(targets).to(device)

    def pair(self, batch: Part) -> Views:
        """Return both views of a batch's crops."""
        changes = self.changes()
        both = changes_of_both(batch["image_draws"][:, 0], changes)
        unit = to_unit(batch["image"][:, 0])
        source, target = (normalised(changed(unit, one, changes), self.config.mean, self.config.std) for one in both)
        return Views(source, target, action(*both))

    def changes(self) -> Photometric:
        """Return chances and strengths of what is done to the source."""
        return Photometric(**{name: getattr(self.options, name) for name in CHANGES})

    def compare_views(self, views: Views, seen: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted and true target tokens (B, Kp, D), and pooled target features (B, D).

        Args:
            views: see `Views`.
            seen: (B, Kc) int64, patch numbers of the source.
            targets: (1, B, Kp) int64, patch numbers of the target.
        """
        whole = self.latents(views.target)
        tokens = self.context(views.source, keep=seen).patches  # (B, Kc, D)
        predicted = self.predictor(tokens, seen, targets, views.actions)
        return predicted, gather_tokens(whole, targets[0]), whole.mean(dim=1)


def changes_of_both(draws: Tensor, options: Photometric) -> tuple[Changes, Changes]:
    """Return what is done to source and target.

    Both are mirrored alike, and their colours change in the same order: the action would not say which.

    Args:
        draws: (B, 22) uniform in 0..1: of the source, then of the target.
        options: of the source; the target is not blurred, grey or solarized, so that it keeps what there is to predict.
    """
    source = parameters(draws[:, :NEEDED], options)
    never, amounts = torch.zeros_like(source.grey), factors(draws[:, NEEDED:], options)
    return source, source._replace(factors=amounts, grey=never, sigma=torch.zeros_like(source.sigma), solarize=never)


def action(source: Changes, target: Changes) -> Tensor:
    """Return what leads from the source to the target, (B, 7).

    That is the target's factors of brightness, contrast and saturation less those of the source, the difference of
    the hues in turns, and whether the source is grey, blurred, solarized. Crop and mirroring are those of both views,
    so that their differences, always 0, are left out.

    Args:
        source, target: what is done to each.
    """
    difference = target.factors - source.factors
    colours = torch.cat([difference[:, :3], difference[:, 3:] / (2 * math.pi)], dim=1)
    lost = torch.stack([source.grey, source.sigma > 0, source.solarize], dim=1)
    return torch.cat([colours, lost.to(colours.dtype)], dim=1)
