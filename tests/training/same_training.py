"""One training in several ways: whole or cut in two, on one process or on two."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from places import ROOT
from safetensors.torch import load_file
from tiny_shards import shapes, write_shards
from torch import Tensor

from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

VIT = {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4}
RESNET = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}
SETTINGS = {"workers": 0, "device": {"accelerator": "cpu", "threads": 1}, "logs": {"every": 1, "tensorboard": False}}
SCRIPT = """
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train
if __name__ == "__main__":
    train(TrainRecipe.model_validate_json(open({recipe!r}).read()))
"""
SGD = {"kind": "sgd", "lr": 0.1}  # where gradients are 0, as before a BatchNorm, Adam would step by their rounding
MOMENTUM = "/momentum_buffer"
Weights = dict[str, Tensor]


def whole_and_cut(tree: Mapping[str, Any], folder: Path) -> tuple[Weights, Weights]:
    """Train six steps, then again from step 4; returns both ends, weights and state."""
    run = write_shards(folder / "run", shapes(40, 16), group=8)
    given = {**SETTINGS, "data": str(run), "out": str(folder / "out"), "steps": 6, "batch": 8}
    recipe = TrainRecipe.model_validate({**given, "checkpoints": {"every": 2}, **tree})
    last = folder / "out" / "checkpoints" / "step-000000006"
    train(recipe)
    whole = load_file(last / "training.safetensors")
    (last / "state.json").unlink()
    train(recipe)
    return whole, load_file(last / "training.safetensors")


def one_and_two(tree: Mapping[str, Any], folder: Path, strategy: str = "ddp") -> tuple[Weights, Weights]:
    """Train two steps on one process, and on two; returns both ends."""
    run = write_shards(folder / "run", shapes(40, 16), group=8)
    given = {**SETTINGS, "data": str(run), "steps": 2, "batch": 8, "streams": 4, **tree}
    given = {"optimiser": {"lr": 1e-3, "eps": 1e-4}, **given}
    train(TrainRecipe.model_validate({**given, "out": str(folder / "one")}))
    device = {"accelerator": "cpu", "threads": 1, "devices": 2, "strategy": strategy}
    recipe = TrainRecipe.model_validate({**given, "out": str(folder / "two"), "device": device})
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    (folder / "script.py").write_text(SCRIPT.format(recipe=str(folder / "recipe.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(folder / "script.py")], check=True, timeout=300, env=environment)
    last = "checkpoints/step-000000002/training.safetensors"
    return load_file(folder / "one" / last), load_file(folder / "two" / last)


def check_same(one: Weights, two: Weights) -> None:
    """Fail where a tensor differs at all."""
    assert one.keys() == two.keys()
    assert {name for name in one if not torch.equal(one[name], two[name])} == set()


def check_near(one: Weights, two: Weights, share: float = 5e-3) -> None:
    """Fail where a tensor differs by more than a share of its length: float32 sums go in another order.

    A momentum may differ by a millionth of all of them too: a gradient that is 0 but for rounding, as that of a bias
    before a BatchNorm, is rounded as the others are large.
    """
    assert one.keys() == two.keys()
    lengths = {name: float(tensor.double().norm()) for name, tensor in one.items()}
    rounding = 1e-6 * math.hypot(*(length for name, length in lengths.items() if name.endswith(MOMENTUM)))
    distances = {name: float((one[name] - two[name]).double().norm()) for name in one}
    near = {name: 1e-5 + share * length + rounding * name.endswith(MOMENTUM) for name, length in lengths.items()}
    far = {name: distance for name, distance in distances.items() if distance > near[name]}
    assert not far, far
