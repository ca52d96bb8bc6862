"""SimMIM: mask tokens go through the encoder, one linear layer says the pixels (Xie et al. 2022, arXiv 2111.09886).

Shapes: B pictures, N patches, p pixels of a patch's side, D width of the encoder.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.data.collate import Part
from granary.training.losses.reconstruction import absolute_error, patchify, unpatchify
from granary.training.masked_images import MaskedOptions, MaskTokens
from granary.training.masking.random_patches import draw_random_mask
from granary.training.method import Moment
from granary.training.models.vit_config import ViTConfig


class SimMIMOptions(MaskedOptions, frozen=True):
    """Options of SimMIM; defaults are the paper's for ImageNet at 224 px with patches of 16."""

    mask_ratio: float = Field(0.6, gt=0, lt=1, description="share of the blocks that are masked")
    mask_block: int = Field(2, ge=1, description="patches along the side of a block that is masked as one (32 px)")
    crop_scale: tuple[float, float] = Field((0.67, 1.0), description="share of the picture's area in a crop")


class SimMIM(MaskTokens):
    """Encoder with mask tokens, and a linear layer from a token to the pixels of its patch."""

    Options = SimMIMOptions
    options: SimMIMOptions

    def __init__(self, config: ViTConfig, options: SimMIMOptions, known: object = None) -> None:
        if config.grid % options.mask_block:
            raise UserError(
                f"options.mask_block: {options.mask_block} is not right: it must divide the {config.grid} patches of a "
                "side"
            )
        super().__init__(config, options, known)
        self.decoder = nn.Linear(config.width, 3 * config.patch_size**2)

    def draw_mask(self, generator: np.random.Generator) -> NDArray[np.bool_]:
        """Return a mask of random blocks, (N,)."""
        return draw_random_mask(self.config.grid, self.options.mask_ratio, generator, self.options.mask_block)

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch under masks drawn for this moment."""
        pixels, masked = self.pixels(batch), self.masks(batch, moment)
        tokens = self.encoder(pixels, masked=masked).patches
        loss = absolute_error(self.decoder(tokens), patchify(pixels, self.config.patch_size), masked)
        return {"loss": loss, "features": tokens.mean(dim=1).detach()}

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor, masked: Tensor) -> Tensor:
        """Return pictures whose masked patches are painted by the model, (B, 3, S, S), normalised as they came.

        Args:
            pixels: (B, 3, S, S), normalised.
            masked: (B, N) bool.
        """
        patches = patchify(pixels, self.config.patch_size)
        painted = self.decoder(self.encoder(pixels, masked=masked).patches).to(patches.dtype)
        return unpatchify(torch.where(masked[..., None], painted, patches), self.config.patch_size)
