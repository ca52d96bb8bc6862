"""What passes through a model: six sites of each block of a Vision Transformer and its attention, stages of a ResNet.

Shekhar et al. 2023 (arXiv 2304.13089) compare models at such sites. Shapes: B pictures, T tokens (class token and
registers first), N patches, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from granary.training.evaluation.subjects import Pixels, Subject
from granary.training.models.backbone import Tokens
from granary.training.models.resnet import ResNet
from granary.training.models.vit import Block, VisionTransformer

PARTS = {  # site of a block -> its submodule, and whether the site is what that is given
    "norm1": ("norm1", False),
    "attention": ("scale1", False),
    "res1": ("norm2", True),
    "norm2": ("norm2", False),
    "mlp": ("scale2", False),
    "block": ("", False),
}


class Site(NamedTuple):
    """A place in a model: layer 0 is before the blocks or stages, 1 the first of them, ..., after them the most.

    `kind` is embed, one of `PARTS` or norm in a Vision Transformer, stem or stage in a ResNet, stage in a model of
    transformers, pixels in none.
    """

    layer: int
    kind: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}"


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
    chosen = {Site(layer, kind): place for layer in layers for kind, place in _parts(model, layer).items()}
    seen = _seen(model, pixels, chosen)
    return [{kind: seen[Site(layer, kind)] for kind in PARTS} for layer in layers]


def sites_of(model: Subject) -> list[Site]:
    """Return the sites of a model, in the order in which they are computed."""
    if isinstance(model, Pixels):
        return [Site(0, "pixels")]
    depth = len(model.stages())
    if isinstance(model, VisionTransformer):
        blocks = [Site(layer, kind) for layer in range(1, depth + 1) for kind in PARTS]
        return [Site(0, "embed"), *blocks, Site(depth + 1, "norm")]
    stages = [Site(layer, "stage") for layer in range(1, depth + 1)]
    return [Site(0, "stem"), *stages] if isinstance(model, ResNet) else stages


@torch.no_grad()
def tokens_at(model: Subject, pixels: Tensor, chosen: Sequence[Site]) -> list[Tokens]:
    """Return the tokens at some sites of a model, in evaluation mode and without gradient.

    Args:
        model: to look into.
        pixels: (B, 3, h, w), normalised.
        chosen: of `sites_of`.

    Returns:
        For each site its tokens; `cls` is the mean of the patches where the model has no class token.
    """
    if isinstance(model, VisionTransformer):
        places = _places(model)
        seen = _seen(model, pixels, {site: places[site] for site in chosen})
        return [model.split(seen[site]) for site in chosen]
    if not isinstance(model, ResNet):
        return [model.eval()(pixels)] * len(chosen)
    parts = {site: (model.layers[site.layer - 1] if site.layer else model.stem, False) for site in chosen}
    maps = [x.flatten(2).transpose(1, 2) for x in _seen(model, pixels, parts).values()]
    return [Tokens(patches.mean(dim=1), patches[:, :0], patches) for patches in maps]


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


Place = tuple[nn.Module, bool]  # a module, and whether the site is what it is given


def _parts(model: VisionTransformer, number: int) -> dict[str, Place]:
    """Return where the sites of a block are."""
    (block,) = _blocks(model, [number])
    return {kind: (block.get_submodule(name), given) for kind, (name, given) in PARTS.items()}


def _places(model: VisionTransformer) -> dict[Site, Place]:
    depth = len(model.blocks)
    inside = {Site(n + 1, kind): place for n in range(depth) for kind, place in _parts(model, n).items()}
    return {Site(0, "embed"): (model.blocks[0], True), **inside, Site(depth + 1, "norm"): (model.norm, False)}


def _seen(model: nn.Module, pixels: Tensor, places: Mapping[Site, Place]) -> dict[Site, Tensor]:
    calls = _calls(model, pixels, [module for module, _ in places.values()])
    return {
        site: calls[module].arguments[0] if given else calls[module].output for site, (module, given) in places.items()
    }


@torch.no_grad()
def _calls(model: nn.Module, pixels: Tensor, modules: Sequence[nn.Module]) -> dict[nn.Module, Call]:
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
