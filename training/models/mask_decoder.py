"""The decoder of masked autoencoders (MAE, arXiv 2111.06377): a Transformer that fills in the patches left out.

Shapes: B pictures, N patches of a picture, K visible ones, D and W widths of encoder and decoder, P of what it says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from granary.training.models.narrow import NarrowTransformer
from granary.training.models.vit_config import ViTConfig


class MaskDecoder(NarrowTransformer):
    """Visible tokens, each at its true position, and a mask token at every other -> what is said of every patch.

    Args:
        config: of the encoder.
        width, depth, heads: W, blocks, and heads of the decoder.
        out: P.
    """

    def __init__(self, config: ViTConfig, width: int, depth: int, heads: int, out: int) -> None:
        super().__init__(config, width, depth, heads, out)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, first: Tensor, visible: Tensor, places: Tensor) -> Tensor:
        """Return (B, N, P), patches in their order.

        Args:
            first: (B, F, D) tokens without a place, the class token; F may be 0.
            visible: (B, K, D) tokens of the visible patches.
            places: (B, K) int64, their numbers.
        """
        x = self.tokens(first, visible, places)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x[:, first.shape[1] :]))

    def tokens(self, first: Tensor, visible: Tensor, places: Tensor) -> Tensor:
        """Return what the blocks see, (B, F + N, W): tokens without a place have no position."""
        seen = self.embed(visible)
        x = self.mask_token.to(seen.dtype).expand(len(seen), self.positions.shape[1], -1)
        x = x.scatter(1, places[..., None].expand_as(seen), seen) + self.positions
        return torch.cat([self.embed(first), x], dim=1)
