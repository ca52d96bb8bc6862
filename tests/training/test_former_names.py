"""What version 0.1 wrote and read by other names is still read: recipes, checkpoints, trainings that go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.evaluation.protocols import linear
from granary.training.models.classifier import Classifier, ClassifierConfig
from granary.training.models.registry import load_model
from granary.training.models.vit_config import FORMER, ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

OLD: dict[str, Any] = {
    "method": "dinov2",
    "model": {
        **{"width": 16, "depth": 1, "heads": 2, "side": 16, "patch": 4, "hidden": 2.0, "positions": "sincos"},
        **{"mean": [0.4, 0.5, 0.6], "deviation": [0.1, 0.2, 0.3]},
    },
    "options": {"prototypes": 8, "hidden": 8, "bottleneck": 4, "local_crops": 1, "local_side": 8, "global_side": 12},
    "alarm": {"deviation": 0.5, "every": 0},
    "steps": 4,
    "batch": 4,
    "workers": 0,
    "logs": {"tensorboard": False},
    "device": {"accelerator": "cpu", "threads": 1},
    "data": "RUN",
    "out": "OUT",
}


def in_former_names(names: dict[str, Any]) -> dict[str, Any]:
    former = {now: before for before, now in FORMER.items()}
    return {former.get(name, name): value for name, value in names.items()}


def test_a_recipe_in_the_former_names_is_the_recipe_in_those_of_now() -> None:
    recipe = TrainRecipe.model_validate(OLD)
    assert recipe.config() == ViTConfig(
        img_size=16, patch_size=4, width=16, depth=1, heads=2, mlp_ratio=2.0, pos_embed="sincos", mask_token=True,
        mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3),
    )  # fmt: skip
    assert (recipe.options["local_size"], recipe.options["global_size"]) == (8, 12)
    assert recipe.alarm.std == 0.5
    assert TrainRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"model: .*side is another name of img_size; give one of them"):
        load_recipe(TrainRecipe, None, ["--method", "dinov2", "--model.side", "16", "--model.img_size", "16"])


def test_former_names_of_the_command_line_work_too() -> None:
    words = ["--method", "dinov2", "--data", "RUN", "--out", "OUT", "--steps", "1", "--model.side", "32"]
    assert load_recipe(TrainRecipe, None, words).model.img_size == 32


def test_options_of_other_parts() -> None:
    tree = {"method": "dci_lora", "model": "m", "data": "d", "out": "o", "rate": 0.5, "epochs": 1}
    assert TrainRecipe.model_validate(tree).optimiser.lr == 0.5
    assert linear.PROTOCOL.read({"rates": "0.1,0.2", "k": 3}).lrs == (0.1, 0.2)
    assert load_model("random:tiny?side=16&patch=8").config.grid == 2


def test_a_classifier_of_version_0_1_is_read(tmp_path: Path) -> None:
    model = Classifier(ClassifierConfig(("a", "b"), 8, 4, std=(0.1, 0.2, 0.3)))
    model.save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(in_former_names(config)))
    assert "deviation" in (tmp_path / "config.json").read_text()
    assert Classifier.load(str(tmp_path)).config == model.config


def test_a_training_of_version_0_1_goes_on(tmp_path: Path) -> None:
    run = str(write_shards(tmp_path / "run", shapes(20, 16), group=10))
    whole, out = str(tmp_path / "whole"), tmp_path / "out"
    recipe = TrainRecipe.model_validate({**OLD, "data": run, "out": whole})
    checkpoints = {"every": 2}
    train(recipe)
    first = TrainRecipe.model_validate({**OLD, "data": run, "out": str(out), "checkpoints": checkpoints})
    train(first)
    last = out / "checkpoints" / "step-000000004"
    for file in last.iterdir():
        file.unlink()
    for config in out.rglob("config.json"):
        config.write_text(json.dumps(in_former_names(json.loads(config.read_text()))))
    (out / "recipe.yaml").write_text(yaml.safe_dump({**OLD, "data": [{"path": run, "weight": 1.0}], "out": str(out)}))
    state = out / "checkpoints" / "step-000000002" / "state.json"
    facts = json.loads(state.read_text())
    facts["sha256"]["config.json"] = hashlib.sha256((state.parent / "config.json").read_bytes()).hexdigest()
    state.write_text(json.dumps(facts))
    assert train(first)["step"] == 4
    ours, theirs = load_model(str(out)).state_dict(), load_model(whole).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
