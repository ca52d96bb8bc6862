"""Write a trained model as another library reads it: `transformers`, timm or open_clip."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from safetensors.torch import save
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.method import Method
from granary.training.methods.coca import CoCa
from granary.training.methods.flava import Flava
from granary.training.methods.generator_lora import GeneratorLora
from granary.training.methods.llip import Llip
from granary.training.methods.supervised import Supervised
from granary.training.models import clip_weights, resnet_weights, weights
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.dual_encoder import DualEncoder
from granary.training.models.hub_backbone import HubBackbone
from granary.training.models.image_classifier import to_image_classifier
from granary.training.models.open_clip_weights import to_open_clip
from granary.training.models.resnet import ResNet
from granary.training.models.timm_weights import to_timm
from granary.training.models.training import load_training
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel


def export(model: str, out: str, format: str = "transformers") -> str:
    """Write the model that PATH names into a local folder, in a format of the field.

    Of an image-text model both encoders and the tokenizer are written, of a supervised training the classifier too.

    Args:
        model: a training directory, a checkpoint folder or hf:ID_OR_PATH.
        out: a local folder; it must be empty or new.
        format: one of FORMATS.

    Returns:
        The call that reads it.

    Raises:
        UserError: naming what is wrong.
    """
    if not storage.is_local(out) or (os.path.isdir(out) and os.listdir(out)):
        raise UserError(f"out: {out} is not right: give a new or empty local folder")
    if format not in FORMATS:
        raise UserError(f"format: {format!r} is not right; the formats are {', '.join(FORMATS)}")
    return FORMATS[format](load_training(model), out)


def _transformers(method: Method, out: str) -> str:
    """Write config.json, model.safetensors, preprocessor_config.json, and the tokenizer of an image-text model."""
    if isinstance(method, GeneratorLora):
        method.saved(method.state_dict(), out)
        return f"transformers.AutoModelForImageTextToText.from_pretrained({out!r})"
    theirs = _converted(method)
    if isinstance(method, DualEncoder):
        clip_weights.transformers_tokenizer(method).save_pretrained(out)
    theirs.save_pretrained(out)
    text = json.dumps(_preprocessing(method.evaluated_model().config), indent=2)
    storage.write_bytes(storage.join(out, "preprocessor_config.json"), text.encode())
    return f"transformers.{type(theirs).__name__}.from_pretrained({out!r})"


def _converted(method: Method) -> PreTrainedModel:
    """Return the model of transformers."""
    if isinstance(method, DualEncoder):
        _check_products(method)
        return clip_weights.to_transformers(method)
    source = method.evaluated_model()
    if isinstance(method, Supervised):
        return to_image_classifier(source, method.head, method.classes)
    if isinstance(source, HubBackbone):
        return source.model
    if isinstance(source, ResNet):
        return resnet_weights.to_transformers(source)
    assert isinstance(source, VisionTransformer)
    return weights.to_transformers(source)


def _timm(method: Method, out: str) -> str:
    """Write config.json and model.safetensors, with the classifier of a supervised training."""
    classifier = (method.head, method.classes) if isinstance(method, Supervised) else ()
    source = method.evaluated_model()
    if isinstance(source, HubBackbone):
        raise UserError("export: timm takes a vit or a resnet; give --format transformers")
    config, tensors = to_timm(source, *classifier)
    _write(out, "config.json", config, "model.safetensors", tensors)
    return f"timm.create_model('local-dir:{out}', pretrained=True)"


def _open_clip(method: Method, out: str) -> str:
    """Write open_clip_config.json, open_clip_model.safetensors and the tokenizer of an image-text model."""
    if not isinstance(method, DualEncoder):
        raise UserError(
            "export: open_clip has models of images and texts; give a training of clip, or another --format"
        )
    _check_products(method)
    config, tensors = to_open_clip(method)
    clip_weights.transformers_tokenizer(method).save_pretrained(out)
    _write(out, "open_clip_config.json", config, "open_clip_model.safetensors", tensors)
    return f"open_clip.create_model_and_transforms('local-dir:{out}')"


def _check_products(method: DualEncoder) -> None:
    """Raise UserError for a model that has parts which no model of this format has."""
    more = {
        Llip: "llip mixes the tokens of a picture for every text",
        CoCa: "coca gathers patches by learnt queries",
        Flava: "flava has a transformer over both",
    }
    why = next((why for kind, why in more.items() if isinstance(method, kind)), None)
    if why:
        raise UserError(f"export: {why}, which no model of this format does; granary.load_training gives it back whole")


def _write(out: str, config: str, tree: Mapping[str, object], file: str, tensors: Mapping[str, Tensor]) -> None:
    storage.write_bytes(storage.join(out, config), (json.dumps(tree, indent=2) + "\n").encode())
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    storage.write_bytes(storage.join(out, file), save(plain))


FORMATS: dict[str, Callable[[Method, str], str]] = {
    "transformers": _transformers,
    "timm": _timm,
    "open_clip": _open_clip,
}


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
