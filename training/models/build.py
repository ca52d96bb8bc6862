"""From an architecture to its model: the one place that knows every kind of backbone."""

from __future__ import annotations

import torch

from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, read_config
from granary.training.models.hub_backbone import HubBackbone
from granary.training.models.resnet import ResNet
from granary.training.models.vit import VisionTransformer

BACKBONES: dict[str, type[Backbone]] = {"vit": VisionTransformer, "resnet": ResNet, "hub": HubBackbone}


def build(config: BackboneConfig) -> Backbone:
    """Return a model of an architecture with initial weights, drawn with torch's generator."""
    return BACKBONES[config.kind](config)


def load_backbone(folder: str, device: str | torch.device = "cpu") -> Backbone:
    """Read a folder with config.json and model.safetensors, of any kind.

    Raises:
        OSError, ValueError, TypeError, RuntimeError: the folder holds something else.
    """
    return BACKBONES[read_config(folder).kind].load(folder, device)
