"""A finished training for each method that RoB takes a teacher from, made once, and students of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny_trainings import tiny_run, tiny_training
from two_view_batches import PLAIN

from granary.training.methods.rob import RoB, RoBOptions
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.resnet import ResNetConfig
from granary.training.models.vit_config import ViTConfig

WIDE = {"width": 24, "depth": 2, "heads": 3, "img_size": 16, "patch_size": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
NO_NORM = {"projector_norm": False, "local_crops": 2}
CENTRED = {"targets": "centring", "fixed_gain": True, "temperature_warmup": 0, "teacher_temperature": 0.05}


class Kind(NamedTuple):
    """A method, and the options that the teacher was trained with."""

    method: str
    options: Mapping[str, Any]


PLAIN_DINO = {key: PLAIN[key] for key in ("jitter", "grey")} | {"blur": [0.0, 0.0, 0.0], "solarize": 0.0}
KINDS = {
    "dinov2": Kind("dinov2", {"local_crops": 2, "freeze": 0, **PLAIN_DINO}),
    "dino": Kind("dinov2", {**CENTRED, "ibot": 0.0, "koleo": 0.0, "local_crops": 2, **PLAIN_DINO}),
    "ibot": Kind("dinov2", {**CENTRED, "untied": False, "centre_patches": "all", "koleo": 0.0, **PLAIN_DINO}),
    "swav": Kind("swav", {**NO_NORM, "freeze": 1, "epsilon": 0.5, **PLAIN}),
    "msn": Kind("msn", {**NO_NORM, "sinkhorn": 0, "drop": 0.5, **PLAIN}),
}
VIT = ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2, layer_scale=0.0)
RESNET = ResNetConfig(img_size=16, widths=(8, 16), depths=(1, 1), stem="small")
Teachers = Callable[[str], str]


def teachers(folder: Path) -> Teachers:
    """Return what gives the training directory of a teacher by its name in KINDS."""
    run = tiny_run(folder / "run")

    def of(name: str) -> str:
        kind = KINDS[name]
        if not (folder / name).exists():
            tiny_training(kind.method, run, folder / name, kind.options, model=WIDE, steps=3)
        return str(folder / name)

    return of


def student(path: str, config: BackboneConfig = VIT, **options: Any) -> RoB:
    """Return RoB with a student whose weights are far from their initial values."""
    torch.manual_seed(0)
    built = RoB(config, RoBOptions(teacher=path, **options))
    with torch.no_grad():
        for name, parameter in built.base.named_parameters():
            if parameter.requires_grad and "last_layer" not in name and "prototypes" not in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return built
