"""What brings the tokens of an image encoder into the space of a language model's words.

LLaVA (Liu et al. 2023, arXiv 2304.08485) projects every patch linearly, LLaVA-1.5 (arXiv 2310.03744) by an MLP; Frozen
(Tsimpoukelli et al. 2021, arXiv 2106.13884) makes a prefix of a few words of the vector of the whole picture.
Shapes: B pictures, P patches of width D, K vectors of width W.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.models.backbone import Tokens

Projection = Literal["linear", "mlp", "prefix"]


class VisualProjector(nn.Module):
    """`Tokens` of a picture -> (B, K, W); K is the number of patches, of a prefix its length.

    Args:
        kind: linear and mlp take the patches, prefix the vector of the picture.
        width: D.
        out: W.
        prefix: K of a prefix.
    """

    def __init__(self, kind: Projection, width: int, out: int, prefix: int) -> None:
        super().__init__()
        self.kind, self.prefix = kind, prefix
        self.first = nn.Linear(width, out * prefix if kind == "prefix" else out)
        self.second = nn.Linear(out, out) if kind == "mlp" else None

    def forward(self, tokens: Tokens) -> Tensor:
        """Return (B, K, W)."""
        if self.kind == "prefix":
            return self.first(tokens.cls).unflatten(1, (self.prefix, -1))
        x = self.first(tokens.patches)
        return x if self.second is None else self.second(F.gelu(x))
