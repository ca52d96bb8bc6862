"""Every way to name a model, read in one place.

PATH          a training directory (its best or last checkpoint), a checkpoint, or a folder with config.json and
              model.safetensors, of granary or of `transformers`
hf:ID         a model of `transformers` by its id on the Hub or its folder
random:WHAT   the architecture and the initial weights of WHAT: a training recipe (.yaml), a training directory, a
              checkpoint, hf:ID, or a size such as tiny?img_size=32&patch_size=4 or resnet18?img_size=32&stem=small
pixels        no model: the picture itself, the baseline of `granary.training.evaluation.subjects`
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from pydantic import ValidationError

from granary.curation.encoders.inference import UNLOADABLE, reason
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.trees import mapping
from granary.training.methods import load_method
from granary.training.models import resnet_weights, weights
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, read_config
from granary.training.models.build import build, load_backbone
from granary.training.models.checkpoint import chosen
from granary.training.models.hub_backbone import load_hub
from granary.training.models.preparation import read_preparation
from granary.training.models.resnet_config import SIZES as RESNETS
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit_config import FORMER, ViTConfig
from granary.training.models.vit_config import SIZES as VITS
from granary.training.recipe import TrainRecipe

PIXELS = "pixels"


class ModelName(NamedTuple):
    """A name as it was read: which way it names a model, and what follows the prefix of that way."""

    way: Literal["path", "hub", "random", "pixels"]
    target: str


def read_name(name: str) -> ModelName:
    """Return how NAME names a model; see the module."""
    if name.startswith("hf:"):
        return ModelName("hub", name.removeprefix("hf:"))
    if name.startswith("random:"):
        return ModelName("random", name.removeprefix("random:"))
    return ModelName("pixels", "") if name == PIXELS else ModelName("path", name)


def model_folder(path: str) -> str:
    """Return the folder with config.json and model.safetensors that PATH names.

    Raises:
        UserError: there is none.
    """
    if storage.exists(storage.join(path, "config.json")):
        return path.rstrip("/")
    folder = chosen(path)
    if folder is None:
        raise UserError(
            f"model: {path} is neither a training directory with a checkpoint nor a folder with config.json and "
            "model.safetensors; for a model of transformers write hf:ID_OR_PATH"
        )
    return folder


def resolved(name: str) -> str:
    """Return NAME, for a training directory the checkpoint that it stands for now. Raises UserError for none."""
    return model_folder(name) if read_name(name).way == "path" else name


def load_model(path: str, device: str | torch.device = "cpu", seed: int = 0) -> Backbone:
    """Return the backbone that a name stands for, in evaluation mode.

    Args:
        path: PATH, hf:ID or random:WHAT; see the module.
        device: where the weights are put.
        seed: of random weights.

    Raises:
        UserError: there is no such model; the message says what is wrong.
    """
    way, target = read_name(path)
    if way == "pixels":
        raise UserError("model: pixels is a baseline without weights; give a training directory or hf:ID_OR_PATH")
    if way == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _untrained(target).to(device).eval()
    if way == "hub":
        return _from_hub(target).to(device)
    folder = model_folder(path)
    return _from_hub(folder).to(device) if of_transformers(folder) else _from_folder(folder, device)


def of_transformers(folder: str) -> bool:
    """Say whether the config.json of a folder is that of a model of transformers, as `granary export` writes it."""
    path = storage.join(folder, "config.json")
    try:
        return "model_type" in mapping(path, storage.read_bytes(path))
    except (OSError, ValueError):
        return False


def _from_folder(folder: str, device: str | torch.device) -> Backbone:
    try:
        return load_backbone(folder, device).eval()
    except UNLOADABLE as error:
        raise UserError(f"model: {folder} holds no model that granary can read ({reason(error)})") from error


def _from_hub(name: str) -> Backbone:
    """Load a vision model of transformers, with safetensors only and no code of its repository."""
    from transformers import AutoConfig, AutoModel, CLIPVisionModel

    try:
        kind = AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
        if kind not in (*weights.KINDS, "clip", "resnet"):
            return load_hub(name)
        loader = CLIPVisionModel if kind.startswith("clip") else AutoModel
        model = loader.from_pretrained(name, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
        if kind == "resnet":
            return resnet_weights.from_transformers(model, read_preparation(name))
        return weights.from_transformers(model)
    except UNLOADABLE as error:
        raise UserError(f"model: hf:{name} cannot be loaded ({reason(error)})") from error


def _untrained(target: str) -> Backbone:
    """Return a model of the architecture that random:TARGET names, its weights drawn with torch's generator."""
    spec = EncoderSpec.parse(f"random:{target}")
    if spec.target in (*VITS, *RESNETS):
        return build(_of_size(spec))
    if read_name(target).way == "hub":
        return build(load_model(target).config)
    recipe = recipe_path(target)
    if recipe is not None:
        return _of_recipe(recipe)
    folder = model_folder(target)
    try:
        return build(read_config(folder))
    except UNLOADABLE as error:
        raise UserError(f"model: {folder} holds no config.json of a granary model ({error})") from error


def _of_size(spec: EncoderSpec) -> BackboneConfig:
    """Return the architecture of a size with options, for example tiny?img_size=32&patch_size=4."""
    spec = replace(spec, options={FORMER.get(name, name): value for name, value in spec.options.items()})
    vit = spec.target in VITS
    spec.check_options("img_size", "patch_size" if vit else "stem")
    side = spec.positive("img_size", 32)
    try:
        if vit:
            return ViTConfig.named(spec.target, img_size=side, patch_size=spec.positive("patch_size", 4))
        return ResNetConfig.named(
            spec.target, img_size=side, stem=spec.choice("stem", "small", "small", "half", "imagenet")
        )
    except ValueError as error:
        raise UserError(f"model: {spec.text} is not right: {error}") from error


def recipe_path(target: str) -> str | None:
    """Return the path of a recipe, or of that of a training directory; None for anything else."""
    path = target if target.endswith((".yaml", ".yml")) else storage.join(target, "recipe.yaml")
    return path if path == target or storage.exists(path) else None


def read_recipe(path: str) -> TrainRecipe:
    """Return a training recipe, which may leave data, out and length to the command line. Raises UserError."""
    try:
        tree = {
            "data": "none",
            "out": "none",
            **mapping(path, storage.read_bytes(path)),
        }
        if "steps" not in tree and "epochs" not in tree:
            tree["steps"] = 1
        return TrainRecipe.model_validate(tree)
    except ValidationError as error:
        problems = [
            ": ".join([*map(str, found["loc"]), found["msg"].removeprefix("Value error, ")]) for found in error.errors()
        ]
        raise UserError(f"model: {path} is not a training recipe ({'; '.join(problems)})") from error
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"model: {path} is not a training recipe ({' '.join(str(error).split())})") from error


def _of_recipe(path: str) -> Backbone:
    """Return the encoder of a recipe as its method starts it."""
    recipe = read_recipe(path)
    method = load_method(recipe.method)
    return method.untrained(recipe.config(), method.Options.model_validate(recipe.options))
