"""Trainings of RoB: the teacher stays as it was, a training goes on, comes back without its teacher, on any student."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rob_teachers import KINDS, WIDE, Teachers, teachers
from safetensors.torch import load_file
from same_training import RESNET, SGD, VIT, check_near, one_and_two, whole_and_cut
from tiny_hub import saved
from tiny_trainings import SETTINGS, tiny_run, tiny_training
from torch import Tensor

from granary.training.methods.rob import RoB
from granary.training.models.hub_backbone import HubBackbone
from granary.training.models.registry import load_model
from granary.training.models.training import load_training
from granary.training.recipe import TrainRecipe
from granary.training.run.loop import train

STUDENTS = {"dinov2": VIT, "dino": RESNET, "ibot": VIT, "swav": RESNET, "msn": VIT}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    return teachers(tmp_path_factory.mktemp("teachers"))


def trained(path: str, out: Path, model: dict[str, Any], options: dict[str, Any] | None = None, steps: int = 3) -> str:
    """Train; returns the folder of the last checkpoint."""
    tree = {"method": "rob", "model": model, "options": {"teacher": path, **(options or {})}, "steps": steps}
    run = str(out / "run") if (out / "run").exists() else tiny_run(out / "run")
    return train(TrainRecipe.model_validate({**SETTINGS, **tree, "data": run, "out": str(out / "out")}))["checkpoint"]


def weights(folder: str) -> dict[str, Tensor]:
    tensors = load_file(Path(folder) / "training.safetensors")
    return {name.removeprefix("method/"): tensor for name, tensor in tensors.items() if name.startswith("method/")}


def last(path: str) -> str:
    """The last checkpoint of a training directory."""
    return str(sorted(Path(path, "checkpoints").iterdir())[-1])


@pytest.mark.parametrize("name", KINDS)
def test_the_teacher_is_the_same_bit_for_bit_after_a_training(name: str, taught: Teachers, tmp_path: Path) -> None:
    """Traps: an average, BatchNorm or a centre that moves. Buffers are among the weights."""
    source = weights(last(taught(name)))
    folder = trained(taught(name), tmp_path, STUDENTS[name])
    ours = {part: tensor for part, tensor in weights(folder).items() if part.startswith("teacher.")}
    assert len(ours) > 20
    for part, tensor in ours.items():
        assert torch.equal(tensor, source[part.removeprefix("teacher.method.")]), part
    optimised = [part for part in load_file(Path(folder) / "training.safetensors") if part.startswith("optimiser/")]
    assert optimised
    assert all(part.startswith("optimiser/base.") for part in optimised)


def test_a_teacher_with_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    source = tiny_training("swav", run, tmp_path / "teacher", {"queue": 16}, model=RESNET, steps=3)
    before = weights(source)
    assert (
        before["encoder.stem.norm.num_batches_tracked"] == 3
        if "encoder.stem.norm.num_batches_tracked" in before
        else True
    )
    after = weights(trained(source, tmp_path, VIT))
    statistics = [part for part in after if part.startswith("teacher.") and "running" in part]
    assert statistics
    assert all(torch.equal(after[part], before[part.removeprefix("teacher.method.")]) for part in statistics)
    assert not any("queues" in part for part in after)


def test_frozen_prototypes_stay_those_of_the_teacher(taught: Teachers, tmp_path: Path) -> None:
    for name in ("dinov2", "swav", "msn"):
        options = {"prototypes": "copy_frozen", "freeze": 0} if name != "msn" else {"prototypes": "copy_frozen"}
        after = weights(trained(taught(name), tmp_path / name, STUDENTS[name], options))
        source = weights(last(taught(name)))
        names = [part for part in after if part.startswith(("base.student_heads.", "base.prototypes"))]
        names = [part for part in names if "last_layer" in part or "prototypes" in part]
        assert names
        for part in names:
            theirs = source[part.removeprefix("base.").replace("student_heads", "teacher_heads")]
            assert torch.equal(after[part], theirs), part


@pytest.mark.parametrize("name", ["dinov2", "swav", "msn"])
def test_the_model_to_use_is_the_student_itself_or_its_average(name: str, taught: Teachers, tmp_path: Path) -> None:
    parts = {"dinov2": ("student", "teacher"), "swav": ("encoder", "encoder"), "msn": ("encoder", "target")}[name]
    for average, part in zip((False, True), parts, strict=True):
        folder = trained(taught(name), tmp_path / str(average), VIT, {"average": average})
        model, whole = load_file(Path(folder) / "model.safetensors"), weights(folder)
        assert model
        assert all(torch.equal(tensor, whole[f"base.{part}.{key}"]) for key, tensor in model.items())
        back = load_training(folder)
        state = back.evaluated_model().state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in model.items())


@pytest.mark.parametrize("name", KINDS)
def test_a_training_comes_back_without_its_teacher(name: str, taught: Teachers, tmp_path: Path) -> None:
    teacher = shutil.copytree(taught(name), tmp_path / "teacher")
    folder = trained(
        str(teacher), tmp_path, STUDENTS[name], {"teacher_size": 8, "global_size": 8} if name == "ibot" else {}
    )
    pixels = torch.randn(4, 3, 16, 16)
    whole = load_training(folder)
    shutil.rmtree(teacher)
    state = torch.get_rng_state()
    back = load_training(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(whole, RoB)
    assert isinstance(back, RoB)
    assert back.teacher.facts == whole.teacher.facts
    assert not any(module.training for module in back.modules())
    ours, theirs = back.state_dict(), weights(folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[part], theirs[part]) for part in ours)
    assert torch.equal(back.teacher.features(pixels, back.config), whole.teacher.features(pixels, back.config))


def test_a_distilled_training_can_teach_and_one_of_rob_cannot(taught: Teachers, tmp_path: Path) -> None:
    """Its heads have as many prototypes as those of its own teacher, whatever its options say."""
    run = tiny_run(tmp_path / "run")
    options = {"teacher": taught("dinov2"), "prototypes": 99, "freeze": 0}
    tiny_training("dinov2", run, tmp_path / "middle", options, model={**WIDE, "width": 12, "heads": 2}, steps=2)
    folder = trained(str(tmp_path / "middle"), tmp_path, VIT)
    source = weights(last(str(tmp_path / "middle")))
    for part, tensor in weights(folder).items():
        if part.startswith("teacher."):
            assert torch.equal(tensor, source[part.removeprefix("teacher.method.")])
    back = load_training(folder)
    assert isinstance(back, RoB)
    assert {part.split(".")[0] for part in back.teacher.method.state_dict()} == {"teacher", "teacher_heads"}
    with pytest.raises(Exception, match="has no heads that RoB knows"):
        trained(folder, tmp_path / "chain", VIT)


@pytest.mark.parametrize("family", ["mobilenet_v2", "regnet"])
def test_students_of_transformers_are_trained_and_loaded(family: str, taught: Teachers, tmp_path: Path) -> None:
    saved(family, tmp_path / "theirs")
    model = {"kind": "hub", "path": str(tmp_path / "theirs"), "img_size": 32}
    for name in ("dinov2", "swav"):
        options = {"ibot": 0.0, "global_size": 32} if name == "dinov2" else {}
        folder = trained(taught(name), tmp_path / name, model, {**options, "local_size": 16}, steps=2)
        shutil.move(tmp_path / "theirs", tmp_path / "elsewhere")
        assert isinstance(load_model(folder), HubBackbone)
        shutil.move(tmp_path / "elsewhere", tmp_path / "theirs")
        assert json.loads((Path(folder) / "state.json").read_text())["metrics"]["kl"] > 0


@pytest.mark.parametrize("name", ["ibot", "swav", "msn"])
def test_a_training_goes_on_as_if_it_had_not_stopped(name: str, taught: Teachers, tmp_path: Path) -> None:
    options = {"teacher": taught(name), "keep_anticollapse": name != "swav"}
    whole, again = whole_and_cut({"method": "rob", "model": STUDENTS[name], "options": options}, tmp_path)
    assert all(torch.equal(whole[part], again[part]) for part in whole)
    source = weights(last(taught(name)))
    moved = [
        part
        for part, tensor in whole.items()
        if part.startswith("method/teacher.") and not torch.equal(tensor, source[part.split(".", 2)[2]])
    ]
    assert bool(moved) == (name == "ibot")
    assert all(".centres." in part for part in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strategy"),
    [("dinov2", "ddp"), ("dinov2", "fsdp"), ("dino", "ddp"), ("swav", "ddp"), ("msn", "fsdp")],
)
def test_two_processes_train_what_one_does(name: str, strategy: str, taught: Teachers, tmp_path: Path) -> None:
    """Sinkhorn, centres and BatchNorm are those of the whole batch; masks are each process's own, so left out."""
    options: dict[str, Any] = {"teacher": taught(name), "keep_anticollapse": name == "dino"}
    options |= {"ibot": 0.0} if name == "dinov2" else {}
    tree = {"method": "rob", "model": STUDENTS[name], "options": options, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))


@pytest.mark.parametrize("name", [pytest.param("dinov2", marks=pytest.mark.slow), "swav", "msn"])
def test_a_student_learns_what_its_teacher_says(name: str, taught: Teachers, tmp_path: Path) -> None:
    tree = {"method": "rob", "model": {**VIT, "width": 32}, "options": {"teacher": taught(name)}, "steps": 60}
    settings = {**SETTINGS, "optimiser": {"lr": 3e-3}, "batch": 24}
    out = tmp_path / "out"
    train(TrainRecipe.model_validate({**settings, **tree, "data": tiny_run(tmp_path / "run"), "out": str(out)}))
    with (out / "metrics.csv").open() as lines:
        kl = [float(row["kl"]) for row in csv.DictReader(lines)]
    assert sum(kl[-5:]) < 0.5 * sum(kl[:5])
