"""MAE: an encoder sees a quarter of the patches, a small decoder paints the others (He et al. 2021, arXiv 2111.06377).

Shapes: B pictures, N patches, K visible ones, p pixels of a patch's side, D width of the encoder.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.data.collate import Part
from granary.training.losses.reconstruction import patch_scale, patchify, squared_error, standardised, unpatchify
from granary.training.masked_images import MaskedImages, MaskedOptions
from granary.training.masking.random_patches import draw_random_mask
from granary.training.method import Moment
from granary.training.models.mask_decoder import MaskDecoder
from granary.training.models.vit_config import ViTConfig


class MAEOptions(MaskedOptions, frozen=True):
    """Options of MAE; defaults are the paper's for ImageNet."""

    decoder_width: int = Field(512, ge=4, description="width of the decoder, a multiple of 4 and of its heads")
    decoder_depth: int = Field(8, ge=1, description="blocks of the decoder")
    decoder_heads: int = Field(16, ge=1, description="heads of the decoder")
    standardise: bool = Field(True, description="paint patches less their own mean, over their own deviation")

    @model_validator(mode="after")
    def _fits(self) -> MAEOptions:
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise ValueError(
                f"decoder_width is {self.decoder_width}; it must be a multiple of 4 and of decoder_heads, "
                f"{self.decoder_heads}"
            )
        return self


class MAE(MaskedImages):
    """Encoder of visible patches and decoder of all; of the encoder's class token nothing is asked but to be of use."""

    Options = MAEOptions
    MODEL = {"pos_embed": "sincos", "layer_scale": 0.0}  # noqa: RUF012 read only
    options: MAEOptions

    def __init__(self, config: ViTConfig, options: MAEOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        if config.mask_token:
            raise UserError("model.mask_token: True is not right: MAE's encoder sees no masked patch; leave it out")
        size = 3 * config.patch_size**2
        self.decoder = MaskDecoder(config, options.decoder_width, options.decoder_depth, options.decoder_heads, size)
        self.apply(initialise)

    def draw_mask(self, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return a mask of random patches, (N,)."""
        return draw_random_mask(self.config.grid, self.options.mask_ratio, generator)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch under masks drawn for this moment."""
        pixels, masked = self.pixels(batch), self.masks(batch, moment)
        predicted, features = self.predict(pixels, masked)
        patches = patchify(pixels, self.config.patch_size)
        targets = standardised(patches) if self.options.standardise else patches
        return {"loss": squared_error(predicted, targets, masked), "features": features.detach()}

    def predict(self, pixels: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder says of all patches, (B, N, p * p * 3), and the mean visible token (B, D).

        Args:
            pixels: (B, 3, S, S), normalised.
            masked: (B, N) bool, `masked_patches` of each row.
        """
        visible = masked.shape[1] - self.masked_patches
        places = masked.byte().argsort(dim=1, stable=True)[:, :visible]  # (B, K), in their order
        tokens = self.encoder(pixels, keep=places)
        first = tokens.cls[:, None] if self.config.class_token else tokens.patches[:, :0]
        return self.decoder(first, tokens.patches, places), tokens.patches.mean(dim=1)

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor, masked: Tensor) -> Tensor:
        """Return pictures whose masked patches are painted by the decoder, (B, 3, S, S), normalised as they came.

        Args:
            pixels: (B, 3, S, S), normalised.
            masked: (B, N) bool, `masked_patches` of each row. Mean and deviation of a painted patch are those of the
                true one, which nothing predicts.
        """
        patches = patchify(pixels, self.config.patch_size)
        painted = self.predict(pixels, masked)[0].to(patches.dtype)
        if self.options.standardise:
            mean, std = patch_scale(patches)
            painted = painted * std + mean
        return unpatchify(torch.where(masked[..., None], painted, patches), self.config.patch_size)


def initialise(module: nn.Module) -> None:
    """Draw linear layers and patch embeddings from Xavier's uniform distribution, as the authors; biases are 0."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
