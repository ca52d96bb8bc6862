"""A backbone and its linear classifier as `...ForImageClassification` of `transformers`, which knows the classes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from granary.curation.errors import UserError
from granary.training.models import resnet_weights, weights
from granary.training.models.backbone import Backbone
from granary.training.models.hub_backbone import HubBackbone
from granary.training.models.resnet import ResNet
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedConfig, PreTrainedModel

CLASSES = {  # model_type of transformers -> class with a classifier
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "ijepa": "IJepaForImageClassification",
    "resnet": "ResNetForImageClassification",
}


def to_image_classifier(backbone: Backbone, head: nn.Linear, classes: Sequence[str]) -> PreTrainedModel:
    """Return a classifier of `transformers` whose logits are those of the head on the backbone's vector.

    Args:
        backbone: of any kind.
        head: from its vector (D) to K logits.
        classes: K names.

    Raises:
        UserError: transformers has no classifier with these parts.
    """
    if isinstance(backbone, HubBackbone):
        return _of_its_family(backbone, head, classes)
    if isinstance(backbone, ResNet):
        theirs = _classifier(resnet_weights.their_config(backbone.config), classes)
        resnet_weights.fill(theirs.base_model, backbone)
    else:
        assert isinstance(backbone, VisionTransformer)
        theirs = _classifier(weights.their_config(_kind(backbone.config), backbone.config), classes)
        weights.fill(theirs.base_model, backbone)
    _fill_head(theirs, head)
    return theirs


def _classifier(config: PreTrainedConfig, classes: Sequence[str]) -> PreTrainedModel:
    """Return their classifier with initial weights, which knows the names of its logits."""
    import transformers

    name = CLASSES[config.model_type]
    config.update({**_labels(classes), "architectures": [name]})
    theirs: PreTrainedModel = getattr(transformers, name)(config).eval()
    return theirs


def _labels(classes: Sequence[str]) -> dict[str, object]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def _of_its_family(backbone: HubBackbone, head: nn.Linear, classes: Sequence[str]) -> PreTrainedModel:
    """Return the classifier that transformers has of the family of a model. Raises UserError where it does not fit."""
    from transformers import AutoModelForImageClassification

    config, side = copy.deepcopy(backbone.model.config), backbone.config.img_size
    config.update({**_labels(classes), "architectures": None})
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        theirs: PreTrainedModel = AutoModelForImageClassification.from_config(config, trust_remote_code=False).eval()
        theirs.base_model.load_state_dict(backbone.model.state_dict())
        _fill_head(theirs, head)
        with torch.no_grad():
            fits = torch.allclose(theirs(pixels).logits, head(backbone(pixels).cls), atol=1e-4, rtol=1e-3)
    except (ValueError, RuntimeError, AttributeError):  # there is none, or its parts have other names or sizes
        fits = False
    if not fits:
        raise UserError(
            f"export: transformers has no image classifier of a {config.model_type} model on the vector that the head "
            "was trained on; load the training by granary.load_training"
        )
    return theirs


def _kind(config: ViTConfig) -> str:
    """Return the model_type that has these parts, and classifies the class token or the mean of the patches."""
    plain = config.class_token and config.stem == "patch" and config.pos_embed != "rotary"
    plain = plain and not (config.layer_scale or config.registers or config.pre_norm)
    kind = "vit" if plain and config.patch_bias and config.mlp != "swiglu" else weights.their_kind(config)
    if kind not in CLASSES:
        raise UserError(
            "export: transformers has no image classifier with these parts; give --format timm, or train a "
            "model without pre_norm"
        )
    return kind


def _fill_head(theirs: PreTrainedModel, head: nn.Linear) -> None:
    """Set the classifier; DINOv2's reads the mean of the patches too, behind the class token, which weighs nothing."""
    (linear,) = (module for module in theirs.get_submodule("classifier").modules() if isinstance(module, nn.Linear))
    weight = linear.weight.new_zeros(linear.weight.shape)
    weight[:, : head.in_features] = head.weight.detach().cpu()
    with torch.no_grad():
        linear.load_state_dict({"weight": weight, "bias": head.bias.detach().cpu()})
