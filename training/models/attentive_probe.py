"""A learned query pools tokens by attention, a linear classifier reads what it gathered; see the protocol `attentive`.

Shapes: B pictures, T tokens, D width, H heads, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from granary.training.models.vit import attend

SIZE = 128  # pictures at once


class AttentiveProbe(nn.Module):
    """Layer norm, keys and values of all tokens, one learned query, a linear classifier: (B, T, D) -> (B, K).

    Args:
        width: D.
        classes: K.
        heads: at most; the greatest number of them that divides D is taken.
    """

    def __init__(self, width: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(0.02 * torch.randn(self.heads, 1, width // self.heads))
        self.keys_values = nn.Linear(width, 2 * width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K) of tokens (B, T, D)."""
        k, v = self.keys_values(self.norm(tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        pooled = attend(self.query.expand(len(tokens), -1, -1, -1), k, v)  # (B, H, 1, D / H)
        return self.classifier(pooled.flatten(1))

    @torch.no_grad()
    def predicted(self, tokens: Tensor) -> Tensor:
        """Return the classes (n,) of pictures, on the CPU."""
        return torch.cat([self(part).argmax(dim=1) for part in tokens.split(SIZE)]).cpu()
