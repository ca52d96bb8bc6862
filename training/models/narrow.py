"""The narrow Transformer behind an encoder: the predictor of I-JEPA and the decoder of MAE are built of it."""

from __future__ import annotations

import torch
from torch import nn

from granary.training.models.positions import sincos_positions
from granary.training.models.vit import Block
from granary.training.models.vit_config import ViTConfig


class NarrowTransformer(nn.Module):
    """Its parts: from the encoder's width to its own, a mask token, fixed positions of patches, blocks, and out.

    Args:
        config: of the encoder, D wide.
        width, depth, heads: W, blocks, and heads of its own.
        out: P, width of what it says of a patch.
    """

    def __init__(self, config: ViTConfig, width: int, depth: int, heads: int, out: int) -> None:
        super().__init__()
        own = ViTConfig(
            img_size=config.img_size,
            patch_size=config.patch_size,
            width=width,
            depth=depth,
            heads=heads,
            layer_scale=0.0,
        )
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(sincos_positions(config.grid, config.grid, width)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(own) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.out = nn.Linear(width, out)
