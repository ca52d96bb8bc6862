"""Weights of a ResNet from and to `transformers.ResNetModel`, by one table that is read in both directions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from granary.curation.errors import UserError
from granary.training.models.preparation import Preparation
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers import ResNetConfig as TheirConfig

PARTS = {"convolution": "0", "normalization": "1"}
NAMES = [  # their name, ours
    (r"embedder\.embedder\.(\w+)\.(\w+)", r"stem.0.{}.\2", 1),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.(\w+)\.(\w+)", r"layers.\1.\2.branch.\3.{}.\5", 4),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.(\w+)\.(\w+)", r"layers.\1.\2.shortcut.{}.\4", 3),
]


def our_name(theirs: str) -> str:
    """Return our name for a weight of theirs. Raises KeyError for none."""
    for pattern, ours, part in NAMES:
        match = re.fullmatch(pattern, theirs)
        if match:
            return match.expand(ours).format(PARTS[match[part]])
    raise KeyError(theirs)


def from_transformers(model: PreTrainedModel, preparation: Preparation) -> ResNet:
    """Return our ResNet with the weights of theirs; both outputs are the same.

    Args:
        model: a `ResNetModel`.
        preparation: of pictures, which their architecture says nothing about.

    Raises:
        UserError: ours has no such parts.
    """
    ours = ResNet(_our_config(model.config, preparation))
    ours.load_state_dict({our_name(name): tensor.float() for name, tensor in model.state_dict().items()})
    return ours.eval()


def _our_config(theirs: PreTrainedConfig, preparation: Preparation) -> ResNetConfig:
    if theirs.hidden_act != "relu" or theirs.downsample_in_first_stage or theirs.downsample_in_bottleneck:
        raise UserError(
            "model: a ResNet of transformers with another hidden_act than relu, with downsample_in_first_stage or "
            "downsample_in_bottleneck is not supported"
        )
    return ResNetConfig(
        img_size=preparation.img_size,
        widths=tuple(theirs.hidden_sizes),
        depths=tuple(theirs.depths),
        block=theirs.layer_type,
        stem_width=theirs.embedding_size,
        mean=preparation.mean,
        std=preparation.std,
    )


def to_transformers(model: ResNet) -> PreTrainedModel:
    """Return a `ResNetModel` with our weights.

    Raises:
        UserError: theirs has no such parts: a small stem, a last block of another width.
    """
    from transformers import ResNetModel

    theirs = ResNetModel(their_config(model.config)).eval()
    fill(theirs, model)
    return theirs


def their_config(config: ResNetConfig) -> TheirConfig:
    """Return the configuration of a `ResNetModel` with our sizes; raises UserError where theirs has no such parts."""
    from transformers import ResNetConfig as TheirConfig

    if config.stem != "imagenet" or config.width != config.widths[-1]:
        raise UserError(
            "export: transformers has no ResNet with these parts; stem: imagenet and no last_width can be written"
        )
    return TheirConfig(
        embedding_size=config.stem_channels,
        hidden_sizes=list(config.widths),
        depths=list(config.depths),
        layer_type=config.block,
        architectures=["ResNetModel"],
    )


@torch.no_grad()
def fill(theirs: nn.Module, model: ResNet) -> None:
    """Give a `ResNetModel` of the same parts our weights."""
    state = model.state_dict()
    theirs.load_state_dict({name: state[our_name(name)].cpu() for name in theirs.state_dict()})
