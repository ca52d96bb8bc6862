"""I-JEPA: predict the representations of target blocks from a context block (Assran et al. 2023, arXiv 2301.08243).

Shapes: B pictures, N patches, Kc of the context, M target blocks of Kp patches, D width of the encoders, P of the
predictor. Rows of blocks are block-major: row m * B + b is block m of picture b.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.masking.multi_block import MultiBlock, draw_masks
from granary.training.method import Method, Moment, ParameterGroup, standard_groups
from granary.training.models.average import average
from granary.training.models.predictor import Predictor
from granary.training.models.vit import VisionTransformer, gather_tokens
from granary.training.models.vit_config import ViTConfig
from granary.training.schedules import linear

SIZES, PLACES = 1, 2  # purposes of random draws


class PredictionOptions(Options, frozen=True):
    """Options of encoders, predictor and target blocks; defaults are I-JEPA's, where paper and authors' code agree."""

    predictor_width: int = Field(384, ge=4, description="width of the predictor, a multiple of 4 and of its heads")
    predictor_depth: int = Field(6, ge=1, description="blocks of the predictor (paper: 6 for B, 12 for L and H)")
    predictor_heads: int | None = Field(None, ge=1, description="heads of the predictor; default those of the encoder")
    predictor_lr: float = Field(1.0, gt=0, description="factor of the predictor's learning rate (paper: 1)")
    init_std: float = Field(
        0.02, gt=0, description="standard deviation of the initial weights; 0.02 is for wide models and large patches"
    )
    embed_std: float | None = Field(None, gt=0, description="that of the patch embedding; default init_std")
    loss: Literal["smooth_l1", "l2"] = Field("smooth_l1", description="smooth_l1: the authors' code; l2: the paper")
    momentum: float = Field(0.996, ge=0, le=1, description="of the target encoder's average at step 0, linear to 1")
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="share of the picture's area in a crop")
    targets: int = Field(4, ge=1, description="target blocks")
    target_scale: tuple[float, float] = Field((0.15, 0.2), description="share of the grid in a target block")
    target_aspect: tuple[float, float] = Field((0.75, 1.5), description="height to width of a target block")


class IJEPAOptions(PredictionOptions, frozen=True):
    """Options of I-JEPA: those above, and of the context block."""

    context_scale: tuple[float, float] = Field((0.85, 1.0), description="share of the grid in the context block")
    min_keep: int = Field(10, ge=0, description="every mask has more patches than this")
    reference_masks: bool = Field(False, description="draw masks exactly as the authors' code, biases included")


class IJEPA(Method):
    """Context encoder f, its average the target encoder, and the predictor g."""

    Options: ClassVar[type[PredictionOptions]] = IJEPAOptions
    MODEL = {"class_token": False, "pos_embed": "sincos", "layer_scale": 0.0}  # noqa: RUF012 read only
    kinds = ("vit",)
    columns = ("image",)
    evaluated = "target"
    config: ViTConfig
    options: PredictionOptions

    def __init__(self, config: ViTConfig, options: PredictionOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        if config.class_token or config.registers or config.pos_embed != "sincos":
            raise UserError("model: I-JEPA has no class token and no registers, and its positions are sincos")
        if config.stem == "conv":
            raise UserError("model.stem: conv is not right: its tokens would have seen the patches that are predicted")
        self.options = options
        self.blocks = self.build_blocks()
        self.context = VisionTransformer(config)
        self.predictor = self.build_predictor()
        self.apply(lambda module: initialise(module, options.init_std))
        if options.embed_std:
            initialise(self.context.embed, options.embed_std)
        self.target = copy.deepcopy(self.context).requires_grad_(False)

    def build_blocks(self) -> MultiBlock:
        """Return how masks are drawn. Raises UserError where blocks do not fit the grid."""
        assert isinstance(self.options, IJEPAOptions)
        return _multi_block(self.config.grid, self.options)

    def build_predictor(self) -> Predictor:
        """Return the predictor with its initial weights."""
        options = self.options
        heads = options.predictor_heads or self.config.heads
        return Predictor(self.config, options.predictor_width, options.predictor_depth, heads)

    def views(self) -> dict[str, Crop]:
        """One random crop; no flip, no colours, no blur."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch under masks drawn for this moment."""
        pixels = normalised(self.pictures(batch), self.config.mean, self.config.std)
        drawn = draw_masks(self.blocks, len(pixels), moment.generator(SIZES, shared=True), moment.generator(PLACES))
        context = torch.from_numpy(drawn.context).to(pixels.device, non_blocking=True)
        targets = torch.from_numpy(drawn.targets).to(pixels.device, non_blocking=True)
        predicted, truth, features = self.compare(pixels, context, targets)
        return {"loss": prediction_loss(predicted, truth, self.options.loss), "features": features}

    def pictures(self, batch: Part) -> Tensor:
        """Return the crops of a batch, (B, 3, S, S) in 0..1."""
        return to_unit(batch["image"][:, 0])

    def compare(self, pixels: Tensor, context: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted and true target tokens (M * B, Kp, D), block-major, and pooled target features (B, D).

        Args:
            pixels: (B, 3, S, S), normalised.
            context: (B, Kc) int64, patch numbers.
            targets: (M, B, Kp) int64, patch numbers.
        """
        whole = self.latents(pixels)  # of the whole picture: masks apply to the output
        truth = torch.cat([gather_tokens(whole, block) for block in targets])
        tokens = self.context(pixels, keep=context).patches  # (B, Kc, D)
        return self.predictor(tokens, context, targets), truth, whole.mean(dim=1)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Return what is predicted of pictures, (B, N, D): the target encoder's tokens, layer-normalised.

        Args:
            pixels: (B, 3, S, S), normalised.
        """
        whole = self.target(pixels).patches
        return F.layer_norm(whole, whole.shape[-1:])  # no affine parameters

    def after_step(self, moment: Moment) -> None:
        """Move the target encoder: target <- m target + (1 - m) context, m linear from `momentum` to 1."""
        momentum = linear(self.options.momentum, 1.0, moment.progress)
        average(self.target, self.context, momentum)

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights of context encoder and predictor; no decay of biases and norms."""
        return [*standard_groups(self.context), *standard_groups(self.predictor, self.options.predictor_lr)]


def initialise(module: nn.Module, std: float) -> None:
    """Draw the weights of a linear layer or patch embedding from a truncated normal; biases are 0.

    A layer of fan-in f multiplies the size of its input by about std * sqrt(f). With 0.02 that is 0.5 for
    16 x 16 patches, but 0.14 for 4 x 4: positions would drown the picture, and predicting them needs no content.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * max(1.0, std), b=2 * max(1.0, std))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def prediction_loss(predicted: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Return the loss of predicted against true tokens.

    Args:
        predicted, truth: (M * B, Kp, D).
        kind: smooth_l1: mean over all elements of x^2 / 2 for |x| < 1, else |x| - 1/2. l2: (1 / M) sum over blocks and
            patches of the squared distance, mean over pictures (the paper's equation in section 3).
    """
    predicted, truth = predicted.float(), truth.float()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(predicted, truth)
    return (predicted - truth).square().sum() / len(predicted)  # rows are M * B


def _multi_block(grid: int, options: IJEPAOptions) -> MultiBlock:
    try:
        return MultiBlock(
            grid,
            options.targets,
            options.target_scale,
            options.target_aspect,
            options.context_scale,
            options.min_keep,
            options.reference_masks,
        )
    except ValueError as error:
        raise UserError(f"options.min_keep: {error}") from error
