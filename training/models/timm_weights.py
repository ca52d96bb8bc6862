"""Names of weights and config.json of timm: its VisionTransformer and its ResNet, which `timm.create_model` builds.

Checked against the sources of timm (timm/models/vision_transformer.py, resnet.py and _hub.py of August 2026): the sizes
are arguments of an architecture that has every part, so that any size fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import REDUCTION
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

EPS = 1e-6  # of timm's norms
VIT = [  # our name, theirs
    (r"cls", "cls_token"),
    (r"registers", "reg_token"),
    (r"positions", "pos_embed"),
    (r"embed\.(\w+)", r"patch_embed.proj.\1"),
    (r"pre_norm\.(\w+)", r"norm_pre.\1"),
    (r"norm\.(\w+)", r"norm.\1"),
    (r"blocks\.(\d+)\.(norm[12])\.(\w+)", r"blocks.\1.\2.\3"),
    (r"blocks\.(\d+)\.attention\.qkv\.(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"blocks\.(\d+)\.attention\.out\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"blocks\.(\d+)\.scale([12])\.scale", r"blocks.\1.ls\2.gamma"),
    (r"blocks\.(\d+)\.mlp\.up\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.down\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
]


class Parts(NamedTuple):
    """A backbone in timm's words: architecture, its arguments, weights by name, names of first layer and classifier."""

    architecture: str
    arguments: dict[str, object]
    tensors: dict[str, Tensor]
    first: str
    classifier: str


def to_timm(
    backbone: Backbone, head: nn.Linear | None = None, classes: Sequence[str] = ()
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return config.json and the weights under timm's names.

    Args:
        backbone: a ViT or a ResNet.
        head: from its vector to K logits; None gives a model of features.
        classes: K names.

    Raises:
        UserError: timm has no model with these parts.
    """
    parts = _of_resnet(backbone) if isinstance(backbone, ResNet) else _of_vit(backbone)
    tensors = dict(parts.tensors)
    if head is not None:
        tensors |= {f"{parts.classifier}.{name}": tensor for name, tensor in head.state_dict().items()}
    config: dict[str, object] = {
        "architecture": parts.architecture,
        "num_classes": len(classes),
        "num_features": backbone.config.width,
        "model_args": parts.arguments,
        "pretrained_cfg": {**_preparation(backbone.config), "first_conv": parts.first, "classifier": parts.classifier},
    }
    return config | ({"label_names": list(classes)} if classes else {}), tensors


def _preparation(config: BackboneConfig) -> dict[str, object]:
    return {
        "input_size": [3, config.img_size, config.img_size],
        "fixed_input_size": isinstance(config, ViTConfig),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(config.mean),
        "std": list(config.std),
    }


def _of_vit(backbone: Backbone) -> Parts:
    if not isinstance(backbone, VisionTransformer):
        raise UserError("export: timm is written from ViTs and ResNets; give --format transformers")
    config, state = backbone.config, backbone.state_dict()
    reasons = {
        "pos_embed: rotary": config.pos_embed == "rotary",
        "mlp: swiglu": config.mlp == "swiglu",
        f"norm_eps {config.norm_eps}": config.norm_eps != EPS,
        "a bias of the patches beside pre_norm, or neither": config.patch_bias == config.pre_norm,
        "stem: conv": config.stem == "conv",
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        raise UserError(
            f"export: timm's VisionTransformer does not fit a model with {reason}; give --format transformers"
        )
    arguments: dict[str, object] = {
        "img_size": config.img_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "init_values": config.layer_scale or None,
        "class_token": config.class_token,
        "no_embed_class": True,  # the positions are those of the patches
        "reg_tokens": config.registers,
        "pre_norm": config.pre_norm,
        "global_pool": "token" if config.class_token else "avg",
        "fc_norm": False,  # the norm comes before the mean
        "act_layer": config.mlp,
    }
    return Parts("vit_base_patch16_224", arguments, dict(_vit_tensors(state)), "patch_embed.proj", "head")


def _vit_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights under their names; tokens that are not there are no weights of theirs, nor is the mask token."""
    for name, tensor in state.items():
        if name != "mask_token" and tensor.numel():
            pattern, theirs = next(pair for pair in VIT if re.fullmatch(pair[0], name))
            yield re.sub(pattern, theirs, name), tensor


def _of_resnet(backbone: ResNet) -> Parts:
    config = backbone.config
    if config.stem != "imagenet" or config.stem_channels != 64 or config.last_width or len(config.widths) != 4:
        raise UserError(
            "export: timm's ResNet has the stem: imagenet of 64 channels, four stages and no last_width; "
            "give --format transformers"
        )
    bottleneck = config.block == "bottleneck"
    channels = [width // REDUCTION if bottleneck else width for width in config.widths]
    arguments: dict[str, object] = {"layers": list(config.depths), "channels": channels}
    tensors = {_resnet_name(name): tensor for name, tensor in backbone.state_dict().items()}
    return Parts("resnet50" if bottleneck else "resnet18", arguments, tensors, "conv1", "fc")


def _resnet_name(name: str) -> str:
    """Return their name: stem.0.0 is conv1, stem.0.1 bn1, layers.S.B.branch.I.0 layer(S+1).B.conv(I+1), and so on."""
    *place, part, kind = name.split(".")
    layer = ("conv", "bn")[int(part)]
    if place[0] == "stem":
        return f"{layer}1.{kind}"
    block = f"layer{int(place[1]) + 1}.{place[2]}"
    if place[3] == "shortcut":
        return f"{block}.downsample.{part}.{kind}"
    return f"{block}.{layer}{int(place[4]) + 1}.{kind}"
