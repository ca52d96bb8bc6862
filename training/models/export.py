"""Write a trained model in the format of `transformers`: config.json, model.safetensors, preprocessor_config.json."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.models import clip_weights, resnet_weights, weights
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.dual_encoder import DualEncoder
from granary.training.models.resnet import ResNet
from granary.training.models.training import load_training
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel


def export(model: str, out: str) -> str:
    """Write the model that PATH names into a local folder that `AutoModel.from_pretrained` reads.

    Of an image-text model both encoders and the tokenizer are written.

    Args:
        model: a training directory, a checkpoint folder or hf:ID_OR_PATH.
        out: a local folder; it must be empty or new.

    Returns:
        The name of the class of `transformers` that reads it.

    Raises:
        UserError: naming what is wrong.
    """
    if not storage.is_local(out) or (os.path.isdir(out) and os.listdir(out)):
        raise UserError(f"out: {out} is not right: give a new or empty local folder")
    theirs, config = _converted(model, out)
    theirs.save_pretrained(out)
    text = json.dumps(_preprocessing(config), indent=2)
    storage.write_bytes(storage.join(out, "preprocessor_config.json"), text.encode())
    return type(theirs).__name__


def _converted(model: str, out: str) -> tuple[PreTrainedModel, BackboneConfig]:
    """Return the model of transformers and the architecture of its image encoder; a tokenizer goes to `out`."""
    method = load_training(model)
    if isinstance(method, DualEncoder):
        clip_weights.transformers_tokenizer(method).save_pretrained(out)
        return clip_weights.to_transformers(method), method.config
    source = method.evaluated_model()
    if isinstance(source, ResNet):
        return resnet_weights.to_transformers(source), source.config
    assert isinstance(source, VisionTransformer)
    return weights.to_transformers(source), source.config


def _preprocessing(config: BackboneConfig) -> dict[str, object]:
    """Return what the image processor of `transformers` does: short edge to the side, centre square, normalise."""
    clip = isinstance(config, ViTConfig) and config.pre_norm
    return {
        "image_processor_type": "CLIPImageProcessor" if clip else "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.img_size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": config.img_size, "width": config.img_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "do_convert_rgb": True,
    }
