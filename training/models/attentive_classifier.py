"""The light classifier of generated clips: a learned query, one block of cross-attention, a linear layer (V-JEPA's).

Bardes et al. 2024 (arXiv 2404.08471), as in the released code: pre-norm of the tokens, the query added to what it
gathered, an MLP. Shapes: B clips or videos, T tokens, D width, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentiveClassifier(nn.Module):
    """(B, T, D) -> (B, K).

    Args:
        width: D.
        classes: K.
        heads: at most; the greatest number of them that divides D is taken.
        mlp_ratio: of hidden units to width.
    """

    def __init__(self, width: int, classes: int, heads: int = 12, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        hidden = int(mlp_ratio * width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K) of tokens (B, T, D)."""
        k, v = self.kv(self.norm(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.q(self.query).unflatten(2, (self.heads, -1)).transpose(1, 2).expand(len(tokens), -1, -1, -1)
        pooled = self.query + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pooled = pooled + self.down(F.gelu(self.up(self.mlp_norm(pooled))))
        return self.classifier(pooled[:, 0])
