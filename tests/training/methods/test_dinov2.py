"""DINOv2 against a slow reference written from the paper, and every trap of the method as a fact."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from safetensors.torch import load_file
from slow_dino import slow_loss
from tiny_shards import shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.losses.self_distillation import koleo_loss
from granary.training.method import Moment
from granary.training.methods.dinov2 import DINOv2, DINOv2Options, Masked
from granary.training.models.checkpoint import usable
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe
from granary.training.run import loop
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=16, depth=2, heads=2, layer_scale=0.1, mask_token=True)
OPTIONS: dict[str, Any] = {
    "prototypes": 12, "patch_prototypes": 9, "hidden": 10, "bottleneck": 6, "patch_bottleneck": 5,
    "local_crops": 3, "local_size": 8, "temperature_warmup": 4, "freeze": 2,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "method": "dinov2",
    "options": OPTIONS,
    "model": {"width": 16, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4, "drop_path": 0.2},
    "steps": 4,
    "batch": 8,
    "workers": 0,
    "window": 16,
    "optimiser": {"lr": 3e-3, "clip": 3.0},
    "logs": {"every": 1, "tensorboard": False},
    "checkpoints": {"every": 2},
    "alarm": {"every": 2},
    "device": {"accelerator": "cpu", "threads": 1},
}
CPU = torch.device("cpu")


def method(config: ViTConfig = CONFIG, **changes: Any) -> DINOv2:
    """A method whose weights are far from their initial values, the teacher another model than the student."""
    torch.manual_seed(0)
    built = DINOv2(config, DINOv2Options(**{**OPTIONS, **changes}))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def pictures(batch: int = 4, views: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2 * batch, 3, 16, 16), torch.randn(views * batch, 3, 8, 8)


def loaded(batch: int = 4, views: int = 3) -> dict[str, Tensor]:
    """What the loader gives."""
    torch.manual_seed(5)
    sides = {"global": (2, 16), "local": (views, 8)}
    found: dict[str, Tensor] = {}
    for name, (count, side) in sides.items():
        found[name] = torch.randint(0, 256, (batch, count, side, side, 3), dtype=torch.uint8)
        found[f"{name}_draws"] = torch.rand(batch, count, 16)
    return found


def masks_of(dino: DINOv2, crops: int = 8) -> Masked:
    return dino.draw_masks(crops, Moment(0, 10, 3), CPU)


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    fast, (whole, local) = method(), pictures()
    slow, masked = copy.deepcopy(fast), masks_of(fast)
    found = fast.compare(whole, local, masked, 0.05)
    assert masked.chosen is not None
    expected = slow_loss(slow, whole, local, masked.chosen, 0.05)
    torch.testing.assert_close(found["dino_global"] + found["dino_local"], expected["dino"], atol=1e-5, rtol=1e-5)
    for name in ("ibot", "koleo", "loss"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    found["loss"].backward()
    expected["loss"].backward()
    compared = 0
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
            compared += 1
    trained = [p for p in fast.parameters() if p.requires_grad and p.numel()]
    assert compared == len(trained)
    assert all(not name.startswith("teacher") for name, p in fast.named_parameters() if p.grad is not None)


def test_targets_are_of_the_unmasked_teacher_and_student_logits_of_the_masked_views() -> None:
    dino, (whole, local) = method(), pictures()
    masked = masks_of(dino)
    before, wanted = dino.student(whole, masked=masked.chosen).patches, dino.targets(whole, masked, 0.05)
    with torch.no_grad():
        for model in (dino.student, dino.teacher):
            model.mask_token.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(wanted, dino.targets(whole, masked, 0.05), strict=True))  # type: ignore[arg-type]
    assert not torch.allclose(before, dino.student(whole, masked=masked.chosen).patches)
    assert len(wanted[0]) == 2
    assert len(local) == 12


def test_a_step_that_was_not_taken_does_not_move_the_centre() -> None:
    dino, batch = method(targets="centring"), loaded()
    dino(batch, Moment(0, 10, 0))  # its loss was not finite, say: no after_step
    dino(batch, Moment(1, 10, 0))
    once = method(targets="centring")
    once(batch, Moment(1, 10, 0))
    for model, step in ((dino, 1), (once, 1)):
        model.after_step(Moment(step, 10, 0))
    for name in ("dino", "ibot"):
        assert dino.centres[name].value.abs().sum() > 0  # type: ignore[operator, union-attr]
        torch.testing.assert_close(dino.centres[name].value, once.centres[name].value)


def test_the_loss_does_not_depend_on_unmasked_patches_of_the_student() -> None:
    dino, (whole, local) = method(koleo=0.0), pictures()
    masked, seen = masks_of(dino), {}
    assert masked.chosen is not None
    student = dino.student.forward

    def noisy(pixels: Tensor, masked: Tensor | None = None) -> Any:
        tokens = student(pixels, masked=masked)
        if masked is None:
            return tokens
        noise = torch.randn_like(tokens.patches) * seen["noise"]
        return tokens._replace(patches=torch.where(masked[..., None], tokens.patches, tokens.patches + noise))

    dino.student.forward = noisy  # type: ignore[method-assign, assignment]
    losses = []
    for noise in (0.0, 10.0):
        seen["noise"] = noise
        losses.append(dino.compare(whole, local, masked, 0.05)["loss"])
    assert torch.equal(*losses)


def test_masks_depend_on_the_moment_alone() -> None:
    dino, batch = method(), loaded()
    one, two = (dino(batch, Moment(3, 10, 7))["loss"] for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, dino(batch, Moment(4, 10, 7))["loss"])


def test_koleo_looks_for_neighbours_in_one_view_and_at_the_backbone() -> None:
    """Both views of a picture alike: neighbours over both would be at distance 0."""
    dino, (whole, local) = method(mask_share=0.0), pictures()
    whole[4:] = whole[:4]
    found = dino.compare(whole, local, masks_of(dino), 0.05)
    assert found["doubles"] == 0
    one, _ = koleo_loss(dino.student(whole[:4]).cls)
    torch.testing.assert_close(found["koleo"], 2 * one)


# -- student and teacher ---------------------------------------------------------------------------------------------


def test_heads_are_two_and_the_average_covers_all() -> None:
    dino = method(momentum=0.0)
    ids = [{id(p) for p in dino.student_heads[name].parameters()} for name in ("dino", "ibot")]
    assert not ids[0] & ids[1]
    dino.after_step(Moment(0, 10, 0))
    state = dino.state_dict()
    pairs = [(name, name.replace("student", "teacher", 1)) for name in state if name.startswith("student")]
    assert len(pairs) == len([name for name in state if name.startswith("teacher")])
    assert all(torch.equal(state[one], state[other]) for one, other in pairs)
    tied = method(untied=False)
    assert list(tied.student_heads) == ["dino"]
    assert torch.isfinite(tied(loaded(), Moment(0, 10, 0))["loss"])


def test_momentum_is_a_half_cosine_from_its_start_to_one() -> None:
    for step, momentum in ((0, 0.994), (5, 0.997), (10, 1.0)):
        dino = method()
        before, student = dino.teacher.norm.weight.clone(), dino.student.norm.weight.detach()
        dino.after_step(Moment(step, 10, 0))
        torch.testing.assert_close(dino.teacher.norm.weight, momentum * before + (1 - momentum) * student)


def test_the_teacher_drops_no_branch_and_gets_no_gradient() -> None:
    dino, (whole, local) = method(ViTConfig(**{**CONFIG.__dict__, "drop_path": 0.5})), pictures()
    dino.train()
    masked = masks_of(dino)
    one, two = (dino.targets(whole, masked, 0.05)[0] for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(dino.student(whole).cls, dino.student(whole).cls)
    dino.compare(whole, local, masked, 0.05)["loss"].backward()
    assert all(p.grad is None for name, p in dino.named_parameters() if name.startswith("teacher"))
    assert all(p.grad is not None for p in dino.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))],
)
def test_bfloat16_changes_the_loss_little_and_no_target(device: str) -> None:
    dino, batch = method().to(device), {name: part.to(device) for name, part in loaded().items()}
    plain = dino(batch, Moment(0, 10, 0))
    with torch.autocast(device, torch.bfloat16):
        mixed = dino(batch, Moment(0, 10, 0))
    mixed["loss"].backward()
    assert mixed["loss"].dtype == mixed["teacher"].dtype == torch.float32
    for name in ("dino_global", "dino_local", "ibot"):
        torch.testing.assert_close(mixed[name], plain[name], atol=0.05, rtol=0.05)
    torch.testing.assert_close(mixed["teacher"].sum(dim=1), torch.ones(4, device=device), atol=1e-5, rtol=0)
    assert all(torch.isfinite(p.grad).all() for p in dino.parameters() if p.grad is not None)


def test_the_teachers_temperature_rises_by_step() -> None:
    dino = method()
    assert [dino.temperature(step) for step in (0, 2, 4, 9)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert method(temperature_warmup=0).temperature(0) == 0.07


def test_head_directions_begin_with_length_one() -> None:
    fresh = DINOv2(CONFIG, DINOv2Options(**OPTIONS))
    for head in fresh.student_heads.values():
        torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(len(head.last_layer.weight)))  # type: ignore[union-attr, arg-type, operator]
    for one, other in ((fresh.student, fresh.teacher), (fresh.student_heads, fresh.teacher_heads)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not fresh.student.mask_token.any()


def test_learning_rates_fall_from_block_to_block_and_modules_are_clipped_apart() -> None:
    dino = method(layer_decay=0.5, patch_lr=0.2)
    found: dict[int, tuple[Any, ...]] = {}
    for group in dino.parameter_groups():
        for parameter in group.params:
            assert id(parameter) not in found
            found[id(parameter)] = (group.lr_scale, group.decay, group.clip, group.start)
    named = {name: found[id(p)] for name, p in dino.named_parameters() if p.requires_grad}
    assert len(named) == len(found)
    assert named["student.norm.weight"] == (1.0, False, "student", 0)
    assert named["student.blocks.1.mlp.up.weight"] == (0.5, True, "student", 0)
    assert named["student.blocks.0.attention.qkv.bias"] == (0.25, False, "student", 0)
    assert named["student.blocks.0.scale1.scale"] == (0.25, False, "student", 0)
    assert named["student.positions"] == (0.125, True, "student", 0)
    assert named["student.embed.weight"] == (0.125 * 0.2, True, "student", 0)
    assert named["student_heads.dino.mlp.0.weight"] == (1.0, True, "student_heads.dino", 0)
    late = [name for name, (*_, start) in named.items() if start]
    assert late == [
        f"student_heads.{name}.last_layer.parametrizations.weight.original{i}"
        for name in ("dino", "ibot")
        for i in range(2)
    ]


# -- in the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_shards(tmp_path_factory.mktemp("run"), shapes(24, 16), group=8))


def recipe_of(run: str, out: Path, **changes: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({**RECIPE, "data": run, "out": str(out), **changes})


def weights(out: Path, number: int = 0) -> dict[str, Tensor]:
    return load_file(list(usable(str(out)))[number] + "/training.safetensors")


@pytest.mark.parametrize("targets", ["sinkhorn", "centring"])
def test_a_run_that_fails_goes_on_as_if_it_had_not(
    targets: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "targets": targets}
    train(recipe_of(run, tmp_path / "whole", options=options))
    original = loop.TrainingSession._update

    def failing(self: Any, step: int) -> None:
        if step == 3:
            raise MemoryError
        original(self, step)

    monkeypatch.setattr(loop.TrainingSession, "_update", failing)
    with pytest.raises(MemoryError):
        train(recipe_of(run, tmp_path / "broken", options=options))
    monkeypatch.setattr(loop.TrainingSession, "_update", original)
    train(recipe_of(run, tmp_path / "broken", options=options))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "broken" / "metrics.csv").read_text()
    assert any("centres" in name for name in one) == (targets == "centring")


def test_last_layers_stay_for_the_first_steps_and_then_move(run: str, tmp_path: Path) -> None:
    train(recipe_of(run, tmp_path, options={**OPTIONS, "freeze": 2}))
    after, before = weights(tmp_path), weights(tmp_path, 1)
    torch.manual_seed(0)
    fresh = DINOv2(recipe_of(run, tmp_path).config(), DINOv2Options(**OPTIONS)).state_dict()
    for name, start in fresh.items():
        if name.startswith("student_heads"):
            frozen = ".last_layer." in name
            assert torch.equal(before[f"method/{name}"], start) == frozen, name
            assert not torch.equal(after[f"method/{name}"], start), name


def test_what_the_loop_logs_and_writes(run: str, tmp_path: Path) -> None:
    facts = train(recipe_of(run, tmp_path))
    names = {"dino_global", "dino_local", "ibot", "koleo", "doubles", "teacher_entropy", "student_norm"}
    assert names <= set(facts["metrics"])
    found = weights(tmp_path)
    model = load_file(facts["checkpoint"] + "/model.safetensors")
    assert all(torch.equal(model[name], found[f"method/teacher.{name}"]) for name in model)


@pytest.mark.parametrize(
    "options", [{"local_crops": 0}, {"ibot": 0.0}, {"koleo": 0.0}, {"untied": False}, {"global_size": 12}]
)
def test_every_part_can_be_left_out(options: dict[str, Any], run: str, tmp_path: Path) -> None:
    facts = train(recipe_of(run, tmp_path, options={**OPTIONS, **options}, steps=2))
    assert math.isfinite(facts["metrics"]["loss"])


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, run: str, tmp_path: Path) -> None:
    """Sinkhorn goes over both halves of the batch; masks and KoLeo's neighbours are each process's own, so left out."""
    device = {**RECIPE["device"], "devices": 2, "strategy": strategy}
    plain = {
        "streams": 4,
        "options": {**OPTIONS, "ibot": 0.0, "koleo": 0.0},
        "model": {**RECIPE["model"], "drop_path": 0},
    }
    in_processes(recipe_of(run, tmp_path / "two", **plain, device=device), tmp_path)
    train(recipe_of(run, tmp_path / "one", **plain))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=2e-4, rtol=2e-3, msg=lambda m, k=key: f"{k}: {m}")
    recipe = recipe_of(run, tmp_path / "all", streams=4, device=device)
    in_processes(recipe, tmp_path)
    step = usable(str(tmp_path / "all"))
    Path(next(step), "state.json").unlink()
    in_processes(recipe, tmp_path)  # goes on from step 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "all").values())


def in_processes(recipe: TrainRecipe, folder: Path) -> None:
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    script = folder / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from granary.training.run.loop import train\n"
        "from granary.training.recipe import TrainRecipe\n"
        "if __name__ == '__main__':\n"
        f"    train(TrainRecipe.model_validate_json(Path({str(folder / 'recipe.json')!r}).read_text()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script)], check=True, timeout=300, env=environment)


# -- mistakes and recipes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"local_size": 9}, r"options.local_size: 9 is not right: it must be a multiple of model.patch_size, 4"),
        ({"global_size": 13}, r"options.global_size: 13 is not right: it must be a multiple of model.patch_size, 4"),
        ({"mask_ratio": (0.5, 0.1)}, r"options.mask_ratio: \[0.5, 0.1\] is not right"),
        ({"local_scale": (0.1, 1.5)}, r"options.local_scale: \[0.1, 1.5\] is not right"),
    ],
)
def test_options_that_do_not_fit_are_sentences(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        DINOv2(CONFIG, DINOv2Options(**{**OPTIONS, **options}))


def test_a_model_without_class_token_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"model.class_token: False is not right"):
        DINOv2(ViTConfig(**{**CONFIG.__dict__, "class_token": False}), DINOv2Options(**OPTIONS))


def test_tokens_that_see_masked_patches_are_a_sentence() -> None:
    config = ViTConfig(**{**CONFIG.__dict__, "stem": "conv"})
    with pytest.raises(UserError, match=r"model.stem: conv is not right"):
        DINOv2(config, DINOv2Options(**OPTIONS))
    DINOv2(config, DINOv2Options(**{**OPTIONS, "ibot": 0.0}))
