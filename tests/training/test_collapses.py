"""Five trainings that collapse, each by a mistake that is easily made: the alarm names every one within 200 steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_trainings import tiny_recipe, tiny_run

from granary.training.run.loop import train

VIT = {"width": 32, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4}
RESNET = {"kind": "resnet", "widths": [16, 32], "depths": [1, 1], "stem": "small", "img_size": 16}
PAIRS = {"projector_hidden": [32], "projector_width": 16}
DINO = {"targets": "centring", "ibot": 0, "koleo": 0, "freeze": 0, "momentum": 0.9, "local_crops": 0}
DINO |= {"prototypes": 32, "hidden": 32, "bottleneck": 16}


class Case(NamedTuple):
    """A training: its mistake, and what the alarm says of it (None for a healthy one)."""

    method: str
    model: dict[str, Any]
    options: dict[str, Any]
    says: str | None
    lr: float = 3e-3


CASES = {
    "DINO whose centre stands still": Case(
        "dinov2",
        VIT,
        {**DINO, "centre_momentum": 1.0, "start_temperature": 0.02, "teacher_temperature": 0.02},
        "the teacher gives all pictures the same answer",
    ),
    "DINO whose teacher is as soft as its student": Case(
        "dinov2",
        VIT,
        {**DINO, "start_temperature": 0.1, "teacher_temperature": 0.1},
        "the teacher's answers are uniform",
    ),
    "SwAV with soft codes": Case(
        "swav",
        RESNET,
        {**PAIRS, "prototypes": 32, "epsilon": 100.0, "local_crops": 0, "freeze": 0},
        "the teacher's answers are uniform",
    ),
    "MSN without its regulariser": Case(
        "msn",
        VIT,
        {**PAIRS, "prototypes": 16, "sharpening": 0.1, "me_max": 0, "sinkhorn": 0, "momentum": 0.9, "local_crops": 0},
        "the teacher gives all pictures the same answer",
        1e-2,
    ),
    "BYOL without BatchNorm, average and hidden layers of the predictor": Case(
        "byol",
        RESNET,
        {**PAIRS, "predictor_hidden": [], "momentum": 0.0, "final_momentum": 0.0, "projector_norm": False},
        "what the loss compares is nearly the same for all pictures",
    ),
    "BYOL as it should be": Case("byol", RESNET, {**PAIRS, "predictor_hidden": [32]}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_alarm_names_the_collapse(name: str, tmp_path: Path) -> None:
    method, model, options, says, lr = CASES[name]
    recipe = tiny_recipe(
        method,
        tiny_run(tmp_path / "run", 256),
        tmp_path / "out",
        options,
        model=model,
        steps=200,
        batch=32,
        alarm={"every": 20},
        optimiser={"lr": lr, "weight_decay": 0.0},
        logs={"every": 100, "tensorboard": False},
    )
    alarms = train(recipe)["alarms"]
    assert any(says in alarm for alarm in alarms) if says else alarms == []
