"""A ResNet goes the whole way: trained, stopped, resumed, started from, probed, measured, and used to curate."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from tiny_shards import shapes, write_shards

from granary.curation.encoders import load_encoder
from granary.curation.errors import UserError
from granary.pipelines.engine.encoders import LOADERS
from granary.training.evaluation.evaluate import EvaluateRecipe, evaluate
from granary.training.models.checkpoint import usable
from granary.training.models.registry import load_model
from granary.training.models.resnet import ResNet
from granary.training.recipe import TrainRecipe
from granary.training.run import loop
from granary.training.run.loop import train

RESNET = {"kind": "resnet", "widths": [8, 16], "depths": [1, 1], "stem": "small", "img_size": 16}
BASE: dict[str, Any] = {
    "method": "supervised",
    "model": RESNET,
    "steps": 6,
    "batch": 8,
    "workers": 0,
    "optimiser": {"lr": 3e-3},
    "logs": {"every": 1, "tensorboard": False},
    "checkpoints": {"every": 3},
    "device": {"accelerator": "cpu", "threads": 1},
}
DINO = {"prototypes": 16, "hidden": 8, "bottleneck": 4, "local_crops": 1, "local_size": 10, "ibot": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(40, 16), group=8))


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**BASE, "data": run, "out": str(out), **changes})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next(iter(usable(str(out)))) + "/training.safetensors")


@pytest.fixture(scope="module")
def trained(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    train(recipe_of(run, out, probe={"every": 3, "train": 20, "test": 10, "k": 3}))
    return out


@pytest.mark.parametrize("changes", [{}, {"method": "dinov2", "options": {**DINO, "layer_decay": 0.5}}])
def test_a_run_that_fails_goes_on_with_the_same_bytes(
    changes: dict[str, Any], run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe_of(run, tmp_path / "whole", **changes))
    original = loop.TrainingSession._update

    def failing(self: Any, step: int) -> None:
        if step == 4:
            raise MemoryError
        original(self, step)

    monkeypatch.setattr(loop.TrainingSession, "_update", failing)
    with pytest.raises(MemoryError):
        train(recipe_of(run, tmp_path / "broken", **changes))
    monkeypatch.undo()
    train(recipe_of(run, tmp_path / "broken", **changes))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    moved = [name for name in one if name.endswith("running_mean")]
    assert moved
    assert all(one[name].abs().sum() > 0 for name in moved)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_is_a_model_by_name_and_a_start_for_another(trained: Path, run: str, tmp_path: Path) -> None:
    model = load_model(str(trained))
    assert isinstance(model, ResNet)
    console = Console(file=io.StringIO(), width=200)
    train(recipe_of(run, tmp_path / "next", init=str(trained), steps=1, optimiser={"lr": 1e-12}), console)
    begun, source = load_model(str(tmp_path / "next")).state_dict(), model.state_dict()
    assert all(torch.allclose(begun[name], source[name], atol=1e-8) for name in source if name.endswith("weight"))
    small = {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4}
    with pytest.raises(UserError, match=r"init: .* of another architecture: it is of kind resnet, not vit"):
        train(recipe_of(run, tmp_path / "vit", init=str(trained), model=small))
    with pytest.raises(UserError, match=r"of another architecture: layers\.1\.0\.branch"):
        train(recipe_of(run, tmp_path / "wide", init=str(trained), model={**RESNET, "last_width": 24}))


def test_its_recipe_names_its_random_weights(trained: Path) -> None:
    random = load_model(f"random:{trained}", seed=2)
    assert random.config == load_model(str(trained)).config
    assert not torch.equal(
        random.state_dict()["stem.0.0.weight"], load_model(str(trained)).state_dict()["stem.0.0.weight"]
    )


def test_it_is_probed_and_measured(trained: Path, run: str) -> None:
    rows = (trained / "probe.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "0", "3", "6"]
    recipe = {"protocols": ["knn", "linear"], "model": str(trained), "data": run, "device": "cpu"}
    scores = evaluate(EvaluateRecipe.model_validate({**recipe, "options": {"holdout": 0.4, "layers": "1,4"}}))
    assert scores


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_it_embeds_pictures_for_curation(pool: str, trained: Path) -> None:
    encoder = load_encoder(f"granary:{trained}?pool={pool}", "cpu", LOADERS["granary"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    model = load_model(str(trained))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (model.config.mean, model.config.std))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    with torch.inference_mode():
        vector = torch.nn.functional.normalize(model(((pixels - mean) / std)[None]).cls, dim=1)
    np.testing.assert_allclose(encoder.embed([picture]), vector.numpy(), atol=1e-5)


@pytest.mark.parametrize("device", [{"recompute": True}, {"strategy": "fsdp"}])
def test_what_only_memory_depends_on_changes_nothing(
    device: dict[str, Any], trained: Path, run: str, tmp_path: Path
) -> None:
    train(recipe_of(run, tmp_path, device={**BASE["device"], **device}))
    one, two = weights(trained), weights(tmp_path)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_masks_need_patches(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options\.ibot: 1\.0 is not right: only a vit has patches to mask; give 0"):
        train(recipe_of(run, tmp_path, method="dinov2", options={**DINO, "ibot": 1.0}))
