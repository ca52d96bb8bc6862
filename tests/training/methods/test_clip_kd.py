"""Distillation of CLIP: its losses against loops, what is 0 for a copy of the teacher, its runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from caption_batches import batch_of
from masked_trainings import compare_gradients, disturbed
from same_training import SGD, VIT, check_near, one_and_two, whole_and_cut
from tiny_trainings import TEXT, tiny_recipe, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.tokenizer import train_tokenizer
from granary.training.evaluation.pairs import load_image_text_model
from granary.training.method import Moment
from granary.training.methods.clip import CLIP, CLIPOptions
from granary.training.methods.clip_kd import ClipKD, ClipKDOptions, Known
from granary.training.models.teacher import Teacher
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig

CAPTIONS = ["a red dog runs", "two cats on a mat", "a boat at sea", "the old man"]
TOKENIZER = train_tokenizer(CAPTIONS, 600)
SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
NOW = Moment(0, 10, 0)
BATCH = [["a red dog"], ["two cats"], [], ["a red dog"], ["a boat"], ["the old man"]]


def teacher(dimension: int = 6) -> CLIP:
    torch.manual_seed(5)
    config = ViTConfig(**{**SHAPE, **CLIP.MODEL, "width": 24})
    given = {**TEXT, "dimension": dimension, "crop_scale": (1.0, 1.0)}
    return CLIP(config, CLIPOptions(**given), train_tokenizer(CAPTIONS[:2], 300))


def student(of: CLIP, **options: Any) -> ClipKD:
    torch.manual_seed(0)
    config = ViTConfig(**{**SHAPE, **CLIP.MODEL})
    facts = Teacher(of, 16).facts
    given = ClipKDOptions(**{**TEXT, "teacher": "T", "dimension": 8, "crop_scale": (1.0, 1.0), **options})
    made = ClipKD(config, given, Known(TOKENIZER, facts))
    made.teacher.method.load_state_dict(of.state_dict())
    return made


def slow_losses(model: ClipKD, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Pair by pair; equal captions of other pictures are left out."""
    pixels, tokens, _ = model.inputs(batch, NOW)
    pixels, theirs = pixels.double(), model.teacher.method
    assert isinstance(theirs, CLIP)
    there = [n for n, own in enumerate(batch["captions"]) if own]
    u, v = model.images(pixels), model.texts(tokens)
    numbers = theirs.tokenizer.numbers([own[0] if own else "" for own in batch["captions"]])
    wanted = [F.normalize(rows, dim=1) for rows in (theirs.images(pixels), theirs.texts(numbers))]
    zero = torch.zeros((), dtype=torch.float64)
    losses = {"contrastive": zero, "affinity": zero, "feature": zero}
    unit = [F.normalize(rows, dim=1) for rows in (u, v)]
    for n in there:
        rivals = [m for m in there if m == n or batch["captions"][m] != batch["captions"][n]]
        for side in (0, 1):
            ours = model.scale.exp()[0] * torch.stack([unit[side][n] @ unit[1 - side][m] for m in rivals])
            other = theirs.scale.exp()[0] * torch.stack([wanted[side][n] @ wanted[1 - side][m] for m in rivals])
            losses["contrastive"] = losses["contrastive"] - ours.log_softmax(0)[rivals.index(n)] / (2 * len(there))
            divergence = F.kl_div(ours.log_softmax(0), other.log_softmax(0), reduction="sum", log_target=True)
            losses["affinity"] = losses["affinity"] + divergence / (2 * len(there))
            adapted = F.normalize(model.adapters[side]((u, v)[side][n]), dim=0)
            losses["feature"] = losses["feature"] + (adapted - wanted[side][n]).square().sum() / (2 * len(there))
    return losses


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.0, 2.0, 0.5)])
def test_losses_and_gradients_equal_loops_over_pairs(weights: tuple[float, float, float]) -> None:
    names = ("contrastive", "affinity", "feature")
    options = {f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)}
    of = disturbed(teacher())
    fast, slow = (disturbed(student(of, **options)) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    batch, inputs = batch_of(BATCH), fast.inputs
    fast.inputs = lambda *given: (inputs(*given)[0].double(), *inputs(*given)[1:])
    output, losses = fast(batch, NOW), slow_losses(slow, batch)
    for name, value in losses.items():
        torch.testing.assert_close(output[name], value.detach(), atol=1e-6, rtol=1e-5)
    expected = sum(weight * losses[name] for name, weight in zip(names, weights, strict=True))
    output["loss"].backward()
    expected.backward()  # type: ignore[union-attr]
    compare_gradients(fast, slow, atol=1e-6)
    assert all(p.grad is None for p in fast.teacher.parameters())


def test_a_copy_of_the_teacher_follows_it_already() -> None:
    of = teacher(8)
    model = student(of)
    copied = {name: w for name, w in of.state_dict().items() if not name.startswith("skipped")}
    torch.manual_seed(0)
    config = ViTConfig(**{**SHAPE, **CLIP.MODEL, "width": 24})
    model = ClipKD(config, model.options, Known(of.tokenizer.json, Teacher(of, 16).facts))
    model.teacher.method.load_state_dict(of.state_dict())
    model.load_state_dict(copied, strict=False)
    for adapter in model.adapters:
        torch.nn.init.eye_(adapter.weight)
        torch.nn.init.zeros_(adapter.bias)
    output = model(batch_of(BATCH), NOW)
    assert float(output["affinity"]) == pytest.approx(0, abs=1e-5)
    assert float(output["feature"]) == pytest.approx(0, abs=1e-5)
    assert float(output["contrastive"]) > 0


def test_a_training_goes_on_and_comes_back_without_its_teacher(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "data")
    tiny_training("clip", run, tmp_path / "teacher", model={**VIT, "width": 24})
    options = {**TEXT, "dimension": 8, "teacher": str(tmp_path / "teacher")}
    whole, again = whole_and_cut({"method": "clip_kd", "model": VIT, "options": options}, tmp_path)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    shutil.rmtree(tmp_path / "teacher")
    assert isinstance(load_training(str(tmp_path / "out")), ClipKD)
    assert load_image_text_model(str(tmp_path / "out"), "cpu").texts(["a circle"]).shape == (1, 8)


def test_a_teacher_without_texts_is_a_sentence(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "data")
    tiny_training("simclr", run, tmp_path / "teacher")
    with pytest.raises(UserError, match="has no text encoder"):
        tiny_training("clip_kd", run, tmp_path / "out", {**TEXT, "dimension": 8, "teacher": str(tmp_path / "teacher")})
    model = {"width": 16, "depth": 1, "heads": 2, "img_size": 16, "patch_size": 4, "registers": 2}
    tiny_training("llip", run, tmp_path / "llip", model=model)
    with pytest.raises(UserError, match="is a llip, which has no vector of a picture"):
        tiny_training("clip_kd", run, tmp_path / "out", {**TEXT, "dimension": 8, "teacher": str(tmp_path / "llip")})
    with pytest.raises(ValueError, match=r"options.teacher: missing"):
        tiny_recipe("clip_kd", run, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    tiny_training("clip", tiny_run(tmp_path / "data"), tmp_path / "teacher", model={**VIT, "width": 24})
    options = {**TEXT, "dimension": 8, "teacher": str(tmp_path / "teacher")}
    tree = {"method": "clip_kd", "model": VIT, "options": options, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
