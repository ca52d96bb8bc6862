"""SimReg against a slow reference, its teachers, and a training that goes on."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from same_training import RESNET, SGD, VIT, check_near, one_and_two, whole_and_cut
from tiny_hub import saved
from tiny_trainings import SETTINGS, tiny_run, tiny_training
from torch import Tensor
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.simreg import SimReg, SimRegOptions
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=16, depth=1, heads=2, **SimReg.MODEL)  # type: ignore[arg-type]
WIDE = {"width": 24, "depth": 2, "heads": 3, "img_size": 16, "patch_size": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
NOW = Moment(0, 10, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def teacher(run: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    tiny_training("dinov2", run, folder, model=WIDE)
    return str(folder)


def method(path: str, config: ViTConfig = CONFIG, **changes: Any) -> SimReg:
    torch.manual_seed(0)
    return SimReg(config, SimRegOptions(**{"teacher": path, **PLAIN, **changes}))


def slow_loss(student: SimReg, teacher: Any, batch: dict[str, Tensor], unit: bool) -> Tensor:
    """|A f(v) - F(v)|^2, one picture of one view at a time, by their lengths where `unit` says so.

    BatchNorm of the adapter sees both views of all pictures.
    """
    rows = [student.encoder(plain_pixels(batch, student.config, view)).cls for view in range(2)]
    adapted = student.adapter(torch.cat(rows))
    targets = torch.cat([teacher(plain_pixels(batch, teacher.config, view)).cls for view in range(2)]).detach()
    total = torch.zeros(())
    for x, t in zip(adapted, targets, strict=True):
        if unit:
            x, t = x / x.square().sum().sqrt(), t / t.square().sum().sqrt()
        total = total + sum((x[d] - t[d]) ** 2 for d in range(len(t)))
    return total / len(adapted)


@pytest.mark.parametrize(("unit", "hidden"), [(True, (12, 10)), (False, ()), (True, ())])
def test_loss_and_gradients_equal_the_slow_reference(unit: bool, hidden: tuple[int, ...], teacher: str) -> None:
    model, batch = method(teacher, unit=unit, hidden=hidden), batch_of(5)
    twin = copy.deepcopy(model)
    output = model(batch, NOW)
    expected = slow_loss(twin, load_model(teacher), batch, unit)  # what is evaluated is DINOv2's average
    torch.testing.assert_close(output["loss"], expected, atol=1e-5, rtol=1e-5)
    output["loss"].backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (not ours.requires_grad), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    trained = {id(p) for group in model.parameter_groups() for p in group.params}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    assert output["features"].shape == (5, 16)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(teacher: str) -> None:
    source = load_model(teacher)
    assert isinstance(source.config, ViTConfig)
    model = method(teacher, source.config, hidden=(), unit=False)
    model.encoder.load_state_dict(source.state_dict())
    with torch.no_grad():
        model.adapter[0].weight.copy_(torch.eye(24))
        model.adapter[0].bias.zero_()
    assert float(model(batch_of(4), NOW)["loss"].detach()) < 1e-9


def test_lengths_count_only_where_that_is_asked_for(teacher: str) -> None:
    for unit in (True, False):
        model, batch = method(teacher, unit=unit, hidden=()), batch_of(4)
        loss = model(batch, NOW)["loss"]
        with torch.no_grad():
            model.adapter[0].weight.mul_(3)
            model.adapter[0].bias.mul_(3)
        assert bool((model(batch, NOW)["loss"] - loss).abs() < 1e-5) == unit


def test_any_model_can_teach(run: str, tmp_path: Path) -> None:
    saved("mobilenet_v2", tmp_path / "hub")
    tiny_training("supervised", run, tmp_path / "supervised", model=RESNET)
    for name in (f"hf:{tmp_path / 'hub'}", str(tmp_path / "supervised"), "random:tiny?img_size=16"):
        model, source = method(name), load_model(name)
        side = source.config.img_size
        pixels = torch.randn(2, 3, side, side)
        shown = model.teacher.shown(pixels, source.config)
        assert torch.equal(shown, pixels)  # their own size and normalisation
        assert torch.equal(model.teacher.features(pixels, source.config), source(pixels).cls)
        assert not any(p.requires_grad for p in model.teacher.parameters())
        assert model.encoders() == [model.encoder]


def test_the_teacher_is_the_same_bit_for_bit_and_is_not_needed_again(run: str, tmp_path: Path) -> None:
    source = tiny_training("supervised", run, tmp_path / "teacher", model=RESNET)
    tree = {"method": "simreg", "model": VIT, "options": {"teacher": source, "hidden": [8]}, "steps": 3}
    recipe = TrainRecipe.model_validate({**SETTINGS, **tree, "data": run, "out": str(tmp_path / "out")})
    checkpoint = train(recipe)["checkpoint"]
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (source, checkpoint))
    whole = load_file(Path(checkpoint) / "training.safetensors")
    assert any("running_var" in name for name in before)
    assert all(torch.equal(whole[f"method/teacher.method.backbone.{name}"], before[name]) for name in before)
    assert all(torch.equal(whole[f"method/encoder.{name}"], after[name]) for name in after)
    shutil.rmtree(tmp_path / "teacher")
    back = load_training(checkpoint).state_dict()
    assert all(torch.equal(back[name.removeprefix("method/")], whole[name]) for name in whole if "method/" in name)


def test_what_does_not_fit_is_a_sentence(teacher: str) -> None:
    with pytest.raises(
        UserError, match=r"teacher_size: 9 is not right: it must be a multiple of the teacher's patch_size"
    ):
        method(teacher, teacher_size=9)
    with pytest.raises(UserError, match="/nowhere is neither"):
        method("/nowhere")
    with pytest.raises(UserError, match=r"options.crop_size: 9 is not right"):
        method(teacher, crop_size=9)


def test_a_training_goes_on_as_if_it_had_not_stopped(teacher: str, tmp_path: Path) -> None:
    tree = {"method": "simreg", "model": RESNET, "options": {"teacher": teacher, "hidden": [8]}}
    whole, again = whole_and_cut(tree, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_what_one_does(teacher: str, tmp_path: Path) -> None:
    tree = {"method": "simreg", "model": RESNET, "options": {"teacher": teacher, "hidden": [8]}, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path))
