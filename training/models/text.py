"""The text encoder of image-text models: a small transformer over token numbers.

It is CLIP's (Radford et al. 2021, arXiv 2103.00020, section 2.4: causal, read at the end of the text) or
SigLIP's (Zhai et al. 2023, arXiv 2303.15343: bidirectional, texts filled up to the context, read at the last place).
Shapes: T texts, L tokens of a text, W width, D dimensions of the shared space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.models.vit import Attention, Block
from granary.training.models.vit_config import ViTConfig


@dataclass(frozen=True)
class TextConfig:
    """The architecture of a text transformer.

    Args:
        vocabulary: number of tokens.
        context: L at most.
        width, depth, heads: W, number of blocks, heads.
        dimension: D.
        causal: CLIP's kind, else SigLIP's.
        end: number of the token that ends a text.
        mlp, norm_eps: as in `ViTConfig`.
    """

    vocabulary: int
    context: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    dimension: int = 512
    causal: bool = True
    end: int = 1
    mlp: str = "gelu"
    norm_eps: float = 1e-5


class CausalAttention(Attention):
    """Self-attention in which a token sees itself and what comes before it."""

    def forward(self, x: Tensor, angles: Tensor | None = None, first: int = 0) -> Tensor:
        """(T, L, W) -> (T, L, W); there are no rotary angles here, and no token is left out."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (T, heads, L, W / heads)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class TextTransformer(nn.Module):
    """Token numbers (T, L) -> (T, D), not normalised."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        layer = ViTConfig(
            width=config.width, heads=config.heads, mlp=config.mlp, layer_scale=0.0, norm_eps=config.norm_eps
        )
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(1, config.context, config.width))
        self.blocks = nn.ModuleList(Block(layer) for _ in range(config.depth))
        if config.causal:
            for block in self.blocks:
                block.attention = CausalAttention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.out = nn.Linear(config.width, config.dimension, bias=not config.causal)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.out.weight, std=config.width**-0.5)
        initialise_blocks(self.blocks, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts as `TextTokenizer.numbers` gives them: what follows the end of a causal text changes nothing."""
        return self.out(self.pooled(tokens))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the vector of each text before it is projected: (T, L) -> (T, W)."""
        return self.read(self.states(tokens), tokens)

    def states(self, tokens: Tensor) -> Tensor:
        """Return what the last block gives for every token: (T, L) -> (T, L, W), not through the final norm."""
        x = self.embed(tokens) + self.positions[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return x

    def read(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Return the vector of each text, of what `states` gave and its tokens: (T, L, W), (T, L) -> (T, W)."""
        if not self.config.causal:
            return self.norm(states[:, -1])
        last = (tokens == self.config.end).int().argmax(dim=1)  # the first of several
        return self.norm(states[torch.arange(len(states), device=states.device), last])


def initialise_blocks(blocks: nn.ModuleList, width: int) -> None:
    """Draw the weights of transformer blocks as CLIP's text encoder does; biases are 0.

    Standard deviations are W^-1/2 of queries, keys and values, (2 W)^-1/2 into the MLP, and W^-1/2 (2 depth)^-1/2 of
    what is added to the residual stream, whose variance would else grow with the depth.
    """
    added = width**-0.5 * (2 * len(blocks)) ** -0.5
    for name, parameter in blocks.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            nn.init.normal_(parameter, std=added)
        elif name.endswith("attention.qkv.weight"):
            nn.init.normal_(parameter, std=width**-0.5)
        elif name.endswith("mlp.up.weight"):
            nn.init.normal_(parameter, std=(2 * width) ** -0.5)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
