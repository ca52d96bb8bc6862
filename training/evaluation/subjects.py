"""What can be measured: models by PATH or hf:ID, and two baselines that have learned nothing.

`random:WHAT` has the architecture and the initial weights of WHAT: a training recipe (.yaml), a training directory or
checkpoint, hf:ID, or a size such as tiny?side=32&patch=4. `pixels` is the picture itself at 32 x 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.methods import load_method
from granary.training.models.registry import load_model, model_folder
from granary.training.models.vit import SIZES, Tokens, VisionTransformer, ViTConfig, read_config
from granary.training.recipe import TrainRecipe

PIXELS, RANDOM = "pixels", "random:"
SIDE, PATCH = 32, 8  # of the raw pixels


class Pixels(nn.Module):
    """Raw pixels in the place of a model: `cls` is the whole picture in a row, a patch its own 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ViTConfig(
            side=SIDE,
            patch=PATCH,
            width=3 * PATCH**2,
            depth=1,
            heads=1,
            class_token=False,
            mean=(0.0, 0.0, 0.0),
            deviation=(1.0, 1.0, 1.0),
        )

    def forward(self, pixels: Tensor) -> Tokens:
        """Return cls (B, 3 * h * w) and patches (B, N, 192) of pictures (B, 3, h, w)."""
        patches = nn.functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
        return Tokens(pixels.flatten(1), patches[:, :0], patches)

    def intermediate(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
        """Return the same for every layer."""
        return [self(pixels)] * len(layers)


Subject = VisionTransformer | Pixels


def load_subject(name: str, device: torch.device | str = "cpu", seed: int = 0) -> Subject:
    """Return what NAME stands for, in evaluation mode; seed: of random weights. Raises UserError with what is wrong."""
    if name == PIXELS:
        return Pixels().to(device)
    if not name.startswith(RANDOM):
        return load_model(name, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _untrained(name).to(device).eval()


def resolved(name: str) -> str:
    """Return NAME, for a training directory the checkpoint that it stands for now."""
    return name if name == PIXELS or name.startswith((RANDOM, "hf:")) else model_folder(name)


def _untrained(name: str) -> VisionTransformer:
    spec = EncoderSpec.parse(name)
    if spec.target in SIZES:
        spec.check_options("side", "patch")
        try:
            config = ViTConfig.named(spec.target, side=spec.positive("side", 32), patch=spec.positive("patch", 4))
        except ValueError as error:
            raise UserError(f"model: {name} is not right: {error}") from error
        return VisionTransformer(config)
    target = name.removeprefix(RANDOM)
    if target.startswith("hf:"):
        return VisionTransformer(load_model(target).config)
    if target.endswith((".yaml", ".yml")):
        return _of_recipe(target)
    if storage.exists(storage.join(target, "recipe.yaml")):
        return _of_recipe(storage.join(target, "recipe.yaml"))
    folder = model_folder(target)
    try:
        return VisionTransformer(read_config(folder))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"model: {folder} holds no config.json of a granary model ({error})") from error


def _of_recipe(path: str) -> VisionTransformer:
    """Return the encoder of a recipe as its method starts it."""
    try:
        tree: Any = yaml.safe_load(storage.read_bytes(path))
        tree = {"data": "none", "out": "none", **tree}  # a recipe may leave them to the command line
        if "steps" not in tree and "epochs" not in tree:
            tree["steps"] = 1
        recipe = TrainRecipe.model_validate(tree)
    except (OSError, yaml.YAMLError, TypeError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"model: {path} is no training recipe ({' '.join(str(error).split())})") from error
    method = load_method(recipe.method)
    return method.untrained(recipe.config(), method.Options.model_validate(recipe.options))
