"""Distillation by DINOv2: the frozen teacher, what is compared, and what is the model to use."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_dinov2 import CONFIG, CPU, OPTIONS, RECIPE, recipe_of, weights
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.dinov2 import DINOv2, DINOv2Options
from granary.training.models.training import load_training
from granary.training.models.vit import VisionTransformer, ViTConfig
from granary.training.models.weights import to_transformers
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(24, 16), group=8))


@pytest.fixture(scope="module")
def taught(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    model = {**RECIPE["model"], "width": 24, "depth": 3, "heads": 3}
    train(recipe_of(run, folder, model=model, options={**OPTIONS, "prototypes": 14, "bottleneck": 8}))
    return str(folder)


def test_distillation_keeps_the_teacher_and_gives_the_average(taught: str, run: str, tmp_path: Path) -> None:
    facts = train(recipe_of(run, tmp_path, options={**OPTIONS, "teacher": taught, "freeze": 0}))
    found, source = weights(tmp_path), weights(Path(taught))
    frozen = {name: tensor for name, tensor in found.items() if name.startswith("method/frozen")}
    assert len(frozen) > 40
    for name, tensor in frozen.items():
        assert torch.equal(tensor, source[name.replace("frozen", "teacher", 1)])
    model = load_file(facts["checkpoint"] + "/model.safetensors")
    average = {name: found[f"method/teacher.{name}"] for name in model}
    assert all(torch.equal(model[name], average[name]) for name in model)
    assert any(not torch.equal(average[name], found[f"method/student.{name}"]) for name in model)
    assert found["method/student_heads.dino.last_layer.parametrizations.weight.original1"].shape == (14, 6)
    assert any(name.startswith("optimiser/student.") for name in found)
    assert not any(name.startswith(("optimiser/frozen", "optimiser/teacher")) for name in found)


def test_distillation_masks_nothing_drops_nothing_and_compares_all_patches(taught: str) -> None:
    dino = DINOv2(ViTConfig(**{**CONFIG.__dict__, "drop_path": 0.5}), DINOv2Options(**{**OPTIONS, "teacher": taught}))
    masked = dino.draw_masks(6, Moment(0, 10, 0), CPU)
    assert masked.chosen is None
    assert len(masked.places) == 6 * 16
    torch.testing.assert_close(masked.weights.sum(), torch.tensor(6.0))
    whole = torch.randn(2, 3, 16, 16)
    assert torch.equal(dino.student(whole).cls, dino.student(whole).cls)
    assert dino.config.drop_path == 0


def test_a_student_equal_to_its_teacher_has_no_divergence(taught: str, run: str) -> None:
    """Softmax targets at the student's temperature, both views the same crop: CE is the teacher's entropy."""
    config = TrainRecipe.model_validate(
        {**RECIPE, "model": {**RECIPE["model"], "width": 24, "depth": 3, "heads": 3}, "data": run, "out": "out"}
    ).config()
    options = {**OPTIONS, "teacher": taught, "bottleneck": 8, "targets": "centring", "local_crops": 0, "koleo": 0.0}
    dino = DINOv2(config, DINOv2Options(**options))
    dino.student.load_state_dict(dino.frozen.state_dict())
    dino.student_heads.load_state_dict(dino.frozen_heads.state_dict())
    whole = torch.randn(4, 3, 16, 16).repeat(2, 1, 1, 1)
    masked = dino.draw_masks(8, Moment(0, 10, 0), CPU)
    found = dino.compare(whole, None, masked, 0.1)
    cls, patches = dino.targets(whole, masked, 0.1)
    assert patches is not None
    torch.testing.assert_close(found["dino_global"], torch.special.entr(cls).sum(dim=-1).mean())
    torch.testing.assert_close(found["ibot"], torch.special.entr(patches).sum(dim=-1).mean())


def test_a_teacher_that_does_not_fit_is_a_sentence(taught: str, run: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    to_transformers(VisionTransformer(CONFIG)).save_pretrained(plain)
    for path, sentence in (("/nowhere", "/nowhere is neither"), (f"hf:{plain}", "has no heads")):
        with pytest.raises(UserError, match=sentence):
            DINOv2(CONFIG, DINOv2Options(**{**OPTIONS, "teacher": path}))
    with pytest.raises(UserError, match=r"model.patch_size: 8 is not right: that of the teacher, 4, is"):
        DINOv2(ViTConfig(**{**CONFIG.__dict__, "patch_size": 8}), DINOv2Options(**{**OPTIONS, "teacher": taught}))
    other = {"method": "supervised", "options": {}, "model": RECIPE["model"]}
    train(recipe_of(run, tmp_path / "other", **other, steps=2))
    with pytest.raises(UserError, match="has no heads; give a training directory of method dinov2"):
        DINOv2(CONFIG, DINOv2Options(**{**OPTIONS, "teacher": str(tmp_path / "other")}))


@pytest.mark.parametrize("known", [True, False])
def test_a_distillation_comes_back_without_its_teacher(known: bool, taught: str, run: str, tmp_path: Path) -> None:
    """Whether its sizes were written down or, as before that, have to be told from its weights."""
    teacher = shutil.copytree(taught, tmp_path / "teacher")
    model = {**RECIPE["model"], "heads": RECIPE["model"]["width"] // 8}  # heads of 8, as those of the teacher
    options = {**OPTIONS, "teacher": str(teacher), "freeze": 0}
    folder = Path(train(recipe_of(run, tmp_path / "out", model=model, options=options))["checkpoint"])
    whole = load_training(str(folder))
    shutil.rmtree(teacher)
    if not known:
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({**state, "known": None}))
    back = load_training(str(folder))
    assert isinstance(whole, DINOv2)
    assert isinstance(back, DINOv2)
    assert dataclasses.replace(back.frozen.config, drop_path=0.2) == whole.frozen.config
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        back.frozen_heads["dino"](back.frozen(pixels).cls), whole.frozen_heads["dino"](whole.frozen(pixels).cls)
    )
