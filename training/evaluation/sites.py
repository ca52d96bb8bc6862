"""What passes through the blocks of a Vision Transformer: six sites of each, and its attention.

Shekhar et al. 2023 (arXiv 2304.13089) compare models at such sites. Shapes: B pictures, T tokens (class token and
registers first), D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from granary.training.models.vit import Block, VisionTransformer


class Call(NamedTuple):
    """What a module was given, and what it returned."""

    arguments: tuple[Any, ...]
    output: Tensor


def sites(model: VisionTransformer, pixels: Tensor, layers: Sequence[int]) -> list[dict[str, Tensor]]:
    """Return what a model computes inside some of its blocks, in evaluation mode and without gradient.

    Args:
        model: to look into.
        pixels: (B, 3, h, w), normalised.
        layers: block numbers from 0.

    Returns:
        For each layer norm1, attention, res1, norm2, mlp, block, each (B, T, D). `attention` and `mlp` are what the
        branches add, after LayerScale: res1 = input + attention, block = res1 + mlp.
    """
    blocks = _blocks(model, layers)
    parts = ("norm1", "scale1", "norm2", "scale2")
    calls = _calls(model, pixels, [*blocks, *(getattr(block, part) for block in blocks for part in parts)])
    return [
        {
            "norm1": calls[block.norm1].output,
            "attention": calls[block.scale1].output,
            "res1": calls[block.norm2].arguments[0],
            "norm2": calls[block.norm2].output,
            "mlp": calls[block.scale2].output,
            "block": calls[block].output,
        }
        for block in blocks
    ]


def attention_maps(model: VisionTransformer, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Return how much each token attends to each in some blocks: (B, H, T, T), rows that sum to 1.

    Args:
        model: to look into, in evaluation mode and without gradient.
        pixels: (B, 3, h, w), normalised.
        layers: block numbers from 0.
    """
    modules = [block.attention for block in _blocks(model, layers)]
    calls = _calls(model, pixels, modules)
    with torch.no_grad():
        return [module.probabilities(*calls[module].arguments[:2]) for module in modules]


def _blocks(model: VisionTransformer, layers: Sequence[int]) -> list[Block]:
    blocks = [model.blocks[layer] for layer in layers]
    return [block for block in blocks if isinstance(block, Block)]


@torch.no_grad()
def _calls(model: VisionTransformer, pixels: Tensor, modules: Sequence[nn.Module]) -> dict[nn.Module, Call]:
    """Run a model in evaluation mode; return the call of each of its `modules`."""
    calls: dict[nn.Module, Call] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        calls[module] = Call(arguments, output)

    hooks, training = [module.register_forward_hook(note) for module in modules], model.training
    try:
        model.eval()(pixels)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return calls
