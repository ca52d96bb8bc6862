"""The predictor of joint-embedding predictive architectures (I-JEPA, arXiv 2301.08243): a narrow Vision Transformer.

Shapes: B pictures, Kc patches of the context, M target blocks of Kp patches, D and P widths of encoder and predictor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from granary.training.models.narrow import NarrowTransformer
from granary.training.models.vit import gather_tokens
from granary.training.models.vit_config import ViTConfig


class Predictor(NarrowTransformer):
    """A narrow ViT g: context tokens and target positions -> predicted target tokens."""

    def __init__(self, config: ViTConfig, width: int, depth: int, heads: int) -> None:
        super().__init__(config, width, depth, heads, config.width)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        """Predict each block in a pass of its own.

        Args:
            context: (B, Kc, D) tokens of the context encoder.
            places: (B, Kc) int64, their patch numbers.
            targets: (M, B, Kp) int64, patch numbers to predict.

        Returns:
            (M * B, Kp, D), block-major.
        """
        return self.predicted(self.tokens(context, places, targets), targets.shape[2])

    def predicted(self, x: Tensor, count: int) -> Tensor:
        """Return what the last tokens become: (R, T, P) tokens -> (R, count, D)."""
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = block(x, first=x.shape[1] - count if number == last else 0)  # at last the mask tokens alone
        return self.out(self.norm(x))

    def tokens(self, context: Tensor, places: Tensor, targets: Tensor) -> Tensor:
        """Return what the blocks see: (M * B, Kc + Kp, P), block-major; context tokens, then mask tokens."""
        positions = self.positions.expand(len(context), -1, -1)
        x = self.embed(context) + gather_tokens(positions, places)  # (B, Kc, P)
        queries = self.queries(torch.stack([gather_tokens(positions, block) for block in targets]))
        return torch.cat([x.expand(len(targets), -1, -1, -1), queries], dim=2).flatten(0, 1)

    def queries(self, positions: Tensor) -> Tensor:
        """Return the mask tokens (M, B, Kp, P) at positions (M, B, Kp, P)."""
        return positions + self.mask_token
