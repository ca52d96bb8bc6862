"""The spatial vision aggregator: maps of one or several image encoders as one, smaller map.

Cambrian-1 (Tong et al. 2024, arXiv 2406.16860, section 3), as LongVU (arXiv 2410.17434) uses it. A grid of learned
queries looks at the encoders; each at the patches below it alone, and at the mean of the first encoder's picture.
Shapes: T pictures, S x S queries, r x r patches of each of E encoders below a query, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.models.compression import resized


class VisionAggregator(nn.Module):
    """E maps of any size -> (T, S, S, W).

    Args:
        widths: of the encoders' vectors.
        side: S.
        patches: r, rows and columns of patches below a query; maps are brought to S r x S r.
        width: W.
        depth: blocks.
        heads: of the attention.
    """

    def __init__(self, widths: Sequence[int], side: int, patches: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.side, self.patches = side, patches
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
            for wide in widths
        )
        self.queries = nn.Parameter(torch.randn(side * side, width) / width**0.5)
        self.blocks = nn.ModuleList(WindowAttention(width, heads) for _ in range(depth))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the map of the queries.

        Args:
            maps: of each encoder (T, H, W, D).

        Returns:
            (T, S, S, W).
        """
        grid = self.side * self.patches
        projected = [
            projection(of_one if of_one.shape[1:3] == (grid, grid) else resized(of_one, grid, grid))
            for projection, of_one in zip(self.projections, maps, strict=True)
        ]
        windows = torch.cat([self._windows(of_one) for of_one in projected], dim=2)
        context = projected[0].mean(dim=(1, 2))[:, None].expand(-1, self.side**2, -1)
        x = self.queries.expand(len(windows), -1, -1)
        for block in self.blocks:
            x = block(x, windows, context)
        return x.unflatten(1, (self.side, self.side))

    def _windows(self, maps: Tensor) -> Tensor:
        """Return the patches below each query: (T, S r, S r, W) -> (T, S S, r r, W)."""
        cut = maps.unflatten(2, (self.side, self.patches)).unflatten(1, (self.side, self.patches))
        return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (T, S, r, S, r, W) -> (T, S, S, r r, W)


class WindowAttention(nn.Module):
    """A query, which knows the whole picture, looks at the patches below it: (T, Q, W) -> (T, Q, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(2 * width, width)
        self.keys, self.values, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, windows: Tensor, context: Tensor) -> Tensor:
        """Return what the queries are after a look.

        Args:
            x: (T, Q, W).
            windows: (T, Q, K, W) patches below each query.
            context: (T, Q, W).
        """
        query = self.query(torch.cat([self.query_norm(x), context], dim=2))[:, :, None]  # (T, Q, 1, W)
        q, k, v = (
            some.unflatten(3, (self.heads, -1)).transpose(2, 3)  # (T, Q, heads, 1 or K, W / heads)
            for some in (query, self.keys(windows), self.values(windows))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3)[:, :, 0]
        x = x + self.out(seen)
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed
