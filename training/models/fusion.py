"""A transformer over the tokens of a picture and of a text together (FLAVA, Singh et al. 2022, arXiv 2112.04482).

Shapes: B pairs, N patches of width D, L tokens of width E, W width here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from granary.training.models.text import initialise_blocks
from granary.training.models.vit import Block
from granary.training.models.vit_config import ViTConfig


class Fusion(nn.Module):
    """Both kinds of tokens, projected, behind a class token of the pair; no positions but those they bring.

    Args:
        image_width, text_width: D, E.
        width, depth, heads: W, number of blocks, heads.
        norm_eps: of the norms.
    """

    def __init__(
        self, image_width: int, text_width: int, width: int, depth: int, heads: int, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        layer = ViTConfig(width=width, heads=heads, mlp="gelu", layer_scale=0.0, norm_eps=norm_eps)
        self.image, self.text = nn.Linear(image_width, width), nn.Linear(text_width, width)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(layer) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        initialise_blocks(self.blocks, width)

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class token (B, W), patches (B, N, W) and words (B, L, W) of (B, N, D) and (B, L, E)."""
        count = patches.shape[1]
        x = torch.cat([self.cls.expand(len(patches), -1, -1), self.image(patches), self.text(words)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1 : 1 + count], x[:, 1 + count :]


def prediction_head(width: int, classes: int) -> nn.Sequential:
    """Return what predicts a masked token: linear, GELU, norm, linear: (..., width) -> (..., classes)."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, classes))
