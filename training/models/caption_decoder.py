"""What turns the tokens of a picture into words: learnt queries that gather them, a decoder that attends to them.

Both are those of CoCa (Yu et al. 2022, arXiv 2205.01917, section 3.2).
Shapes: B pictures, P patches, K gathered tokens, L tokens of a text, W width of the text, D width of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from granary.training.models.text import CausalAttention, initialise_blocks
from granary.training.models.vit import Block, attend
from granary.training.models.vit_config import ViTConfig


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others.

    Args:
        width: of the tokens that ask, and of what is returned.
        other: width of those that answer.
        heads: a divisor of `width`.
    """

    def __init__(self, width: int, other: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(other, 2 * width), nn.Linear(width, width)
        for layer, fan in ((self.q, width), (self.kv, other), (self.out, width)):
            nn.init.normal_(layer.weight, std=fan**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        """(B or 1, L, width), (B, K, other) -> (B, L, width)."""
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(others).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q.expand(len(k), -1, -1, -1), k, v).transpose(1, 2).flatten(2))


class AttentionalPooler(nn.Module):
    """Learnt queries that gather the tokens of a picture: (B, P, D) -> (B, K, W); attention, then a norm.

    Args:
        width: D.
        queries: K.
        out: W.
        heads: a divisor of W.
    """

    def __init__(self, width: int, queries: int, out: int, heads: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, queries, out))
        self.attention = CrossAttention(out, width, heads)
        self.norm = nn.LayerNorm(out)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, P, D) -> (B, K, W)."""
        return self.norm(self.attention(self.queries, tokens))


class CaptionBlock(Block):
    """Causal self-attention, attention to a picture, an MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.attention = CausalAttention(config.width, config.heads)
        self.cross_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross_attention = CrossAttention(config.width, config.width, config.heads)

    def forward(self, x: Tensor, picture: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, L, W), (B, K, W) -> (B, L, W)."""
        assert picture is not None
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.cross_norm(x), picture)
        return x + self.mlp(self.norm2(x))


class CaptionDecoder(nn.Module):
    """The states of a text and the tokens of a picture -> logits of each next token.

    The table of the words' embeddings also reads them: logits are products with its rows.

    Args:
        width, depth, heads: W, number of blocks, heads.
        norm_eps: of the norms.
    """

    def __init__(self, width: int, depth: int, heads: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        layer = ViTConfig(width=width, heads=heads, mlp="gelu", layer_scale=0.0, norm_eps=norm_eps)
        self.blocks = nn.ModuleList(CaptionBlock(layer) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        initialise_blocks(self.blocks, width)

    def forward(self, states: Tensor, picture: Tensor, table: Tensor) -> Tensor:
        """Return logits (B, L, V).

        Args:
            states: (B, L, W) of the tokens so far.
            picture: (B, K, W).
            table: (V, W), the embeddings of the tokens.
        """
        for block in self.blocks:
            states = block(states, picture)
        return nn.functional.linear(self.norm(states), table)
