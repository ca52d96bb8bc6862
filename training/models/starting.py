"""Start a backbone from the weights of another: what the new one needs is carried over, the rest is named.

Positions of another grid are interpolated. LayerScale is moved into the layers it scales, or starts at 1, so that the
tokens stay the same. A mask token, registers and a class token may be left out, or begin anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from granary.training.models.backbone import Backbone
from granary.training.models.positions import interpolated
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

SHAPE = ("width", "heads", "patch_size", "stem")  # must be equal
PREPARATION = ("mlp", "norm_eps", "mean", "std")  # may differ, and is said
REPLACEABLE = ("cls", "registers", "mask_token", "positions")  # may begin anew
SCALED = (("scale1", "attention.out"), ("scale2", "mlp.down"))  # a LayerScale, and the layer before it


class Misfit(ValueError):
    """A model needs weights that the other does not have; the message says which."""


def start(target: Backbone, source: Backbone) -> list[str]:
    """Give a model the weights of another; returns sentences on what was left out, begins anew or was interpolated.

    Raises:
        Misfit: it is a model of another kind, or a block, the patches or the norm have no counterpart of their shape.
    """
    ours, theirs = target.state_dict(), _carried(target, source)
    kept = {name for name in theirs if name in ours and theirs[name].shape == ours[name].shape}
    needed = [name for name in ours if name not in kept and name not in REPLACEABLE]
    if needed:
        state = f"is {tuple(theirs[needed[0]].shape)}" if needed[0] in theirs else "is not there"
        raise Misfit(f"{needed[0]} {state}, {tuple(ours[needed[0]].shape)} is needed")
    target.load_state_dict({**ours, **{name: theirs[name] for name in kept}})
    left = [name for name, weight in theirs.items() if name not in kept and weight.numel()]
    new = [name for name, weight in ours.items() if name not in kept and weight.numel()]
    return list(_remarks(source, target, left, new))


def _carried(target: Backbone, source: Backbone) -> Mapping[str, Tensor]:
    """Return the weights of a model as they are for another; raises Misfit for one of another kind or shape."""
    here, there = target.config, source.config
    if here.kind != there.kind:
        raise Misfit(f"it is of kind {there.kind}, not {here.kind}")
    if not (isinstance(source, VisionTransformer) and isinstance(here, ViTConfig)):
        return source.state_dict()
    for field in SHAPE:
        if getattr(there, field) != getattr(here, field):
            raise Misfit(f"its {field} is {getattr(there, field)}, not {getattr(here, field)}")
    return _fitted(source, here)


def _fitted(source: VisionTransformer, target: ViTConfig) -> dict[str, Tensor]:
    """Return the weights of a model with the parts, and the grid of positions, of another architecture."""
    weights = dict(source.state_dict())
    for block in range(source.config.depth):
        for scale, layer in SCALED:
            _scale(weights, f"blocks.{block}.{scale}.scale", f"blocks.{block}.{layer}", target)
    if target.patch_bias and not source.config.patch_bias and target.stem == "patch":
        weights["embed.bias"] = torch.zeros(target.width)
    if "positions" in weights and source.config.grid != target.grid:
        if target.pos_embed == "sincos":
            del weights["positions"]  # the table of the new grid is known
        else:
            grids = (source.config.grid, target.grid, target.grid)
            weights["positions"] = interpolated(weights["positions"], *grids, antialias=target.antialias)
    return weights


def _scale(weights: dict[str, Tensor], scale: str, layer: str, target: ViTConfig) -> None:
    """Move a LayerScale into its layer where the target has none; give it one that changes nothing where it has."""
    if target.layer_scale > 0 and scale not in weights:
        weights[scale] = torch.ones(target.width)
    elif target.layer_scale == 0 and scale in weights:
        factor = weights.pop(scale)
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * factor[:, None]
        weights[f"{layer}.bias"] = weights[f"{layer}.bias"] * factor


def _remarks(source: Backbone, target: Backbone, left: Iterable[str], new: Iterable[str]) -> Iterator[str]:
    if left:
        yield f"left out: {', '.join(_parts(left))}"
    if new:
        yield f"with initial weights: {', '.join(_parts(new))}"
    old, now = source.config.grid, target.config.grid
    if old != now and isinstance(source, VisionTransformer) and source.config.pos_embed != "rotary":
        yield f"positions of {old} x {old} patches are now of {now} x {now}"
    there, here = asdict(source.config), asdict(target.config)
    for field in PREPARATION:
        if there.get(field) != here.get(field):
            yield f"{field} was {there[field]} and is {here[field]}"


def _parts(names: Iterable[str]) -> list[str]:
    """Return names of weights with those of a block, or of a layer, as one."""
    return list(dict.fromkeys(re.sub(r"^(blocks\.\d+)\..*|\.(weight|bias)$", r"\1", name) for name in names))
