"""I-JEPA's loss as the paper states it: one picture, one block, one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from granary.training.methods.ijepa import IJEPA

MaskTokens = Callable[[int, int, int], Tensor]  # number of the block, picture, patches K -> (K, P)


def slow_block(block: Any, x: Tensor) -> Tensor:
    """A transformer block on (T, D), heads in a loop, softmax written out."""
    heads, width = block.attention.heads, x.shape[1]
    size = width // heads
    q, k, v = (block.attention.qkv(block.norm1(x))).split(width, dim=1)
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        weights = torch.exp(q[:, own] @ k[:, own].T / size**0.5)
        parts.append(weights / weights.sum(dim=1, keepdim=True) @ v[:, own])
    x = x + block.scale1(block.attention.out(torch.cat(parts, dim=1)))
    hidden = block.mlp.up(block.norm2(x))
    return x + block.scale2(block.mlp.down(0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))))


def slow_positions(width: int, grid: int = 8) -> Tensor:
    """The sine-cosine table, cell by cell."""
    table, quarter = np.zeros((grid * grid, width)), width // 4
    for row in range(grid):
        for column in range(grid):
            for k in range(quarter):
                for half, index in enumerate((column, row)):
                    angle = index * 10000 ** (-k / quarter)
                    table[row * grid + column, half * 2 * quarter + k] = np.sin(angle)
                    table[row * grid + column, half * 2 * quarter + quarter + k] = np.cos(angle)
    return torch.tensor(table, dtype=torch.float32)


def slow_encoder(vit: Any, picture: Tensor, kept: list[int]) -> Tensor:
    tokens = []
    for number in kept:
        row, column = divmod(number, 8)
        patch = picture[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        tokens.append((vit.embed.weight * patch).sum(dim=(1, 2, 3)) + vit.embed.bias)
    x = torch.stack(tokens) + slow_positions(24)[kept]
    for block in vit.blocks:
        x = slow_block(block, x)
    return vit.norm(x)


def slow_loss(
    ijepa: IJEPA, pixels: Tensor, context: Tensor, targets: Tensor, kind: str, tokens: MaskTokens | None = None
) -> Tensor:
    """The loss by loops over pictures, blocks and patches; `tokens` are added to positions, by default one for all."""
    terms, positions, predictor = [], slow_positions(16), ijepa.predictor
    tokens = tokens or (lambda number, picture, count: predictor.mask_token[0].expand(count, -1))
    for picture in range(len(pixels)):
        with torch.no_grad():
            whole = slow_encoder(ijepa.target, pixels[picture], list(range(64)))
            whole = torch.stack([(t - t.mean()) / (t.var(unbiased=False) + 1e-5).sqrt() for t in whole])
        kept = context[picture].tolist()
        seen = predictor.embed(slow_encoder(ijepa.context, pixels[picture], kept)) + positions[kept]
        for number_of_block, block in enumerate(targets):
            wanted = block[picture].tolist()
            x = torch.cat([seen, tokens(number_of_block, picture, len(wanted)) + positions[wanted]])
            for layer in predictor.blocks:
                x = slow_block(layer, x)
            guess = predictor.out(predictor.norm(x))[len(kept) :]
            for place, number in enumerate(wanted):
                difference = guess[place] - whole[number]
                small = difference.abs() < 1
                terms.append(
                    torch.where(small, difference**2 / 2, difference.abs() - 0.5).mean()
                    if kind == "smooth_l1"
                    else (difference**2).sum()
                )
    total = torch.stack(terms)
    return total.mean() if kind == "smooth_l1" else total.sum() / (len(targets) * len(pixels))
