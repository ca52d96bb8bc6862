"""Every recipe that granary ships for the methods of this layer: read always, run at a reduced size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_shards import shapes, write_shards

from pipelines.recipe import load_recipe
from training.loop import train
from training.methods import load_method
from training.recipe import TrainRecipe

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "train").glob("ijepa_*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_read_and_says_how_it_is_run(config: Path) -> None:
    recipe = load_recipe(TrainRecipe, str(config), ["--data", "RUN", "--out", "TRAIN"])
    assert recipe.batch % recipe.parts(recipe.device.devices * recipe.device.nodes) == 0
    header = config.read_text().split("\nname:")[0]
    assert f"granary train --config configs/train/{config.name} --data RUN --out TRAIN" in header
    assert re.search(r"arXiv \d{4}\.\d{5}", header)
    assert "Hardware" in header


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_recipe_runs_at_a_reduced_size(config: Path, tmp_path: Path) -> None:
    """Two steps of its method, masks and schedules with a small model on small pictures."""
    run = write_shards(tmp_path / "run", shapes(40, 32), group=10)
    small = ["--steps", "2", "--batch", "8", "--streams", "2", "--workers", "0", "--probe.every", "0"]
    small += ["--epochs", "null", "--model.width", "32", "--model.depth", "1", "--model.heads", "2"]
    small += ["--options.predictor_depth", "1", "--options.predictor_width", "16", "--device.accelerator", "cpu"]
    small += ["--device.devices", "1", "--device.nodes", "1", "--device.strategy", "auto", "--device.threads", "1"]
    recipe = load_recipe(TrainRecipe, str(config), ["--data", str(run), "--out", str(tmp_path / "out"), *small])
    assert load_method(recipe.method).MODEL
    assert train(recipe)["finished"]
