"""A training comes back whole: its method with every module (heads, prototypes, predictor, both encoders, tokenizer).

A checkpoint holds all that builds them again: config.json, and in state.json the recipe and what was learnt of the
data. Checkpoints of earlier versions lack these two; then recipe.yaml of the training directory and the weights say it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from granary.curation.encoders.inference import UNLOADABLE, reason
from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage
from granary.curation.store.trees import mapping
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.method import Method, Moment
from granary.training.methods import METHODS, load_method
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import read_config
from granary.training.models.checkpoint import (
    Damaged,
    Facts,
    checkpoint_folder,
    described,
    method_weights,
    misfit,
    read_checkpoint,
    shaped,
    undescribed,
)
from granary.training.models.registry import load_model, read_name, read_recipe, recipe_path


class BackboneAlone(Method):
    """A model that no training of granary made: there is its backbone, and nothing to train it by."""

    Options = Options
    evaluated = "backbone"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.config, Options(), None)
        self.backbone = backbone

    def views(self) -> dict[str, Crop]:
        """The middle of a picture."""
        return {"image": Crop(1, self.config.img_size, centre=True)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Raise UserError: there is no loss."""
        raise UserError("model: this is a backbone without a training, which has no loss; start a training with init")


def load_training(path: str, device: str | torch.device = "cpu", seed: int = 0) -> Method:
    """Return the method of a training with all its modules and weights, in evaluation mode; no data are read.

    Args:
        path: a training directory (its best or last checkpoint), a checkpoint, hf:ID of a published training, or
            random:RECIPE_OR_TRAIN for initial weights. Another model that `load_model` reads comes back with its
            backbone alone.
        device: where the weights are put.
        seed: of random weights.

    Raises:
        UserError: there is no such training, or it is damaged; the message says what is wrong.
    """
    return _opened(path, seed).to(device).eval()


def _opened(path: str, seed: int) -> Method:
    way, target = read_name(path)
    if way == "random" and (recipe := recipe_path(target)) is not None:
        return _untrained(recipe, seed)
    if way == "hub" and not storage.exists(target):
        target = _downloaded(target)
    folder = checkpoint_folder(target) if way in ("path", "hub") else None
    return BackboneAlone(load_model(path, seed=seed)) if folder is None else _restored(folder)


def _downloaded(repository: str) -> str:
    """Return the local folder of the training in a repository of the Hub; it is empty where there is none."""
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(repository, allow_patterns=["recipe.yaml", "checkpoints/*"]))
    except UNLOADABLE as error:
        raise UserError(f"model: hf:{repository} cannot be loaded ({reason(error)})") from error


def _untrained(path: str, seed: int) -> Method:
    """Return the method of a recipe with initial weights; where it must know the data, a stand-in of two classes."""
    recipe = read_recipe(path)
    kind = load_method(recipe.method)
    options = kind.Options.model_validate(recipe.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(recipe.config(), options, kind.imagined(options))


def _restored(folder: str) -> Method:
    """Return the method of a checkpoint with its weights."""
    try:
        tensors, facts = read_checkpoint(folder)
    except Damaged as error:
        raise UserError(f"model: {folder} is damaged ({error})") from error
    weights = method_weights(tensors)
    build = _builder(folder, facts, weights)
    try:
        with torch.device("meta"):  # which takes no memory, whatever sizes the files claim
            blank = build()
        expected = blank.state_dict()
        weights = shaped(undescribed(weights), expected)
        wrong = misfit(weights, expected)
        if wrong is None:
            with torch.random.fork_rng(devices=[]):
                method = build()
            method.load_state_dict(weights)
            return method
    except UNLOADABLE as error:
        raise UserError(f"model: {folder} holds no training that granary can read ({reason(error)})") from error
    raise UserError(f"model: {folder} is a checkpoint of another architecture than its recipe: {wrong}")


def _builder(folder: str, facts: Facts, weights: Mapping[str, Tensor]) -> Callable[[], Method]:
    """Return what builds the method of a checkpoint with initial weights."""
    name = facts.get("method")
    if name not in METHODS:
        raise UserError(f"model: {folder} is a training of method {name!r}; the methods are {', '.join(METHODS)}")
    kind = load_method(name)
    try:
        options = kind.Options.model_validate(_options(folder, facts, weights))
        config, known = read_config(folder), kind.recalled(facts.get("known"), weights)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"model: the recipe of {folder} is not right: options.{key}: {problem['msg']}") from error
    except UNLOADABLE as error:
        raise UserError(f"model: {folder} holds no training that granary can read ({reason(error)})") from error
    return lambda: kind(config, options, known)


def _options(folder: str, facts: Facts, weights: Mapping[str, Tensor]) -> object:
    """Return the method's options: of the checkpoint, in earlier ones of its weights (CLIP) or of recipe.yaml."""
    if "recipe" in facts:
        return facts["recipe"].get("options", {})
    if said := described(weights):
        return said["options"]
    recipe = storage.join(folder.rsplit("/", 2)[0], "recipe.yaml")
    return mapping(recipe, storage.read_bytes(recipe)).get("options", {})
