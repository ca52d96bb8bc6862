"""Checkpoints: OUT/checkpoints/step-NNNNNNNNN/ with config.json and model.safetensors (the model to use),
training.safetensors (all weights and the optimiser's state) and state.json (counters, the digests of the others).

state.json is written last: a folder without it does not count. Nothing is pickled. Damage is seen by the digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import torch
from safetensors.torch import load, save
from torch import Tensor

from granary.curation.store import storage
from granary.training.models.backbone import weight_files
from granary.training.models.backbone_config import BackboneConfig

FORMAT = 1
FOLDER = "checkpoints"
STATE = "state.json"
DESCRIBED = "described"  # a buffer of earlier image-text trainings: their options and tokenizer, as bytes of JSON
METHOD = "method/"  # names of the weights of a method, among all tensors of its training, begin so
FILES = ("config.json", "model.safetensors", "training.safetensors")


class Best(TypedDict):
    """The step whose weights had the lowest validation loss so far, and that loss."""

    step: int
    loss: float


class Facts(TypedDict, total=False):
    """What state.json says: how far the training was, what builds it again, and the digests of the other files.

    `recipe` and `known`, what was learnt of the data, are not there in checkpoints of version 0.1.
    """

    format: int
    step: int
    method: str
    alarms: dict[str, str]
    probe: dict[str, float]
    metrics: dict[str, float]
    validation: dict[str, float]
    best: Best | None
    sha256: dict[str, str]
    recipe: dict[str, Any]
    known: object


class Damaged(Exception):
    """A checkpoint cannot be used; the message says why in a few words."""


def step_folder(out: str, step: int) -> str:
    """Return the folder of a checkpoint."""
    return storage.join(out, FOLDER, f"step-{step:09d}")


def usable(out: str) -> Iterator[str]:
    """Yield the complete checkpoint folders of a training directory, the latest first."""
    folder = storage.join(out, FOLDER)
    for name in reversed(storage.names(folder)):
        if re.fullmatch(r"step-\d+", name) and storage.exists(storage.join(folder, name, STATE)):
            yield storage.join(folder, name)


def checkpoint_folder(path: str) -> str | None:
    """Return the checkpoint that PATH is, or the one to use of the training directory that it is; None for neither."""
    return path.rstrip("/") if storage.exists(storage.join(path, STATE)) else chosen(path)


def chosen(out: str) -> str | None:
    """Return the checkpoint of a training directory to use: the best by validation where that is kept, else the last.

    Args:
        out: the training directory.
    """
    last = next(usable(out), None)
    if last is None:
        return None
    try:
        best = json.loads(storage.read_bytes(storage.join(last, STATE))).get("best")
        folder = step_folder(out, int(best["step"])) if best else last
    except (ValueError, TypeError, KeyError, AttributeError):
        return last
    return folder if storage.exists(storage.join(folder, STATE)) else last


def write_checkpoint(
    folder: str,
    config: BackboneConfig,
    model: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    facts: Facts,
) -> None:
    """Write a checkpoint; it counts when the last of its files stands.

    Args:
        folder: of `step_folder`.
        config, model: architecture and weights of the model to use.
        training: every tensor that training needs, by name.
        facts: how far the training was.
    """
    storage.remove(storage.join(folder, STATE))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in training.items()}
    digests = {}
    for name, data in (*weight_files(config, model), (FILES[2], save(tensors))):
        storage.write_bytes(storage.join(folder, name), data)
        digests[name] = _digest(data)
    state = {"format": FORMAT, **facts, "sha256": digests}
    storage.write_bytes(storage.join(folder, STATE), json.dumps(state, indent=2).encode())


def read_checkpoint(folder: str) -> tuple[dict[str, Tensor], Facts]:
    """Return the tensors and the facts of a checkpoint; raises Damaged, naming the file."""
    try:
        facts: Facts = json.loads(storage.read_bytes(storage.join(folder, STATE)))
        if facts["format"] != FORMAT:
            raise Damaged(f"{STATE} is of format {facts['format']}, this version reads {FORMAT}")
        data = {name: storage.read_bytes(storage.join(folder, name)) for name in FILES}
        wrong = [name for name in FILES if _digest(data[name]) != facts["sha256"][name]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    if wrong:
        raise Damaged(f"{wrong[0]} is not what was written")
    tensors = load(data["training.safetensors"])  # in any order, and processes must hand them round in one
    return dict(sorted(tensors.items())), facts


def shaped(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, those without any number in the shape expected: FSDP gathers (1, 0, D) as (0, 0, D)."""
    empty = {name: tensor for name, tensor in expected.items() if not tensor.numel()}
    return {
        name: tensor.new_empty(empty[name].shape) if name in empty and not tensor.numel() else tensor
        for name, tensor in saved.items()
    }


def misfit(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return the first weight, by name, that is not there or of another shape, in a few words; None for none."""
    there, here = ({name: tuple(t.shape) for name, t in state.items()} for state in (saved, expected))
    name = next((name for name in sorted(there | here) if there.get(name) != here.get(name)), None)
    return name and f"{name} is {there.get(name, 'not there')}, not {here.get(name, 'there')}"


def method_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a method's modules, by their names there, of the tensors of a training."""
    return {name.removeprefix(METHOD): tensor for name, tensor in tensors.items() if name.startswith(METHOD)}


def described(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what an earlier image-text training said of itself among its weights: options, tokenizer; {} for others.

    Args:
        weights: of a method's modules.
    """
    tree: dict[str, Any] = json.loads(bytes(weights[DESCRIBED].tolist())) if DESCRIBED in weights else {}
    return tree


def undescribed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a method's modules as they are now, without what `described` reads."""
    return {name: tensor for name, tensor in weights.items() if name != DESCRIBED}


def prune(out: str, keep: int, best: Best | None = None) -> None:
    """Remove all but the last `keep` checkpoints and the best, and folders that were never completed before them."""
    complete = list(usable(out))
    standing = {*complete[:keep], *([step_folder(out, best["step"])] if best else [])}
    for folder in (folder for folder in complete if folder not in standing):
        storage.remove(storage.join(folder, STATE))  # first: from here on the folder does not count
        storage.remove(folder)
    if complete:
        parent, kept = storage.join(out, FOLDER), {folder.rsplit("/", 1)[1] for folder in standing}
        for name in storage.names(parent):
            if name not in kept and name < complete[0].rsplit("/", 1)[1]:
                storage.remove(storage.join(parent, name))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a nested dictionary of tensors and numbers, names joined by `/`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value if isinstance(value, Tensor) else torch.tensor(value)


def nest(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the nested dictionary that `flatten` was given, numbers as tensors."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, last = name.split("/")
        below = tree
        for part in path:
            below = below.setdefault(part, {})
        below[last] = tensor
    return tree
