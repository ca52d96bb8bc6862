"""DINO and iBOT, recipes of the method dinov2: their losses are those of their papers, step after step."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import places
import pytest
import torch
from slow_dino import SlowCentred
from torch import Tensor

from granary.pipelines.engine.recipe import load_recipe
from granary.training.losses.self_distillation import Centre
from granary.training.method import Moment
from granary.training.methods.dinov2 import DINOv2, DINOv2Options
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import TrainRecipe

SIZES: dict[str, Any] = {
    "prototypes": 12, "hidden": 10, "bottleneck": 6,
    "local_crops": 2, "local_size": 8, "global_size": None, "smallest_block": 2,
}  # fmt: skip
RECIPES = ("dino_tiny", "dino_vits16", "ibot_tiny", "ibot_vitb16")


def recipe_of(name: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, str(places.CONFIGS / "train" / f"{name}.yaml"), ["--data", "RUN", "--out", "TRAIN"])


def method(name: str, **changes: Any) -> DINOv2:
    """The method of a recipe at a small size, its weights far from their initial values but for fixed ones."""
    recipe = recipe_of(name)
    config = recipe.config()
    assert isinstance(config, ViTConfig)
    small = replace(config, img_size=16, patch_size=4, width=16, depth=2, heads=2, drop_path=0.0)
    torch.manual_seed(0)
    built = DINOv2(small, DINOv2Options.model_validate({**recipe.options, **SIZES, **changes}))
    with torch.no_grad():
        for part, parameter in built.named_parameters():
            if not (part.endswith("original0") and built.options.fixed_gain):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def pictures(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(4, 3, 16, 16), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_and_gradients_are_those_of_the_paper_step_after_step(name: str) -> None:
    fast, slow = method(name, freeze=0), SlowCentred(12)
    for step in range(2):
        whole, local = pictures(step)
        moment, temperature = Moment(step, 10, 0), fast.temperature(step)
        masked = fast.draw_masks(4, moment, torch.device("cpu"))
        assert masked.chosen is None or masked.chosen.any()
        twin = copy.deepcopy(fast)
        found = fast.compare(whole, local, masked, temperature)
        expected = slow.losses(twin, whole, local, masked.chosen, temperature)
        torch.testing.assert_close(found["dino_global"] + found["dino_local"], expected["dino"], atol=1e-5, rtol=1e-5)
        assert ("ibot" in found) == ("ibot" in expected) == name.startswith("ibot")
        if "ibot" in expected:
            torch.testing.assert_close(found["ibot"], expected["ibot"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["loss"], sum(expected.values()), atol=1e-5, rtol=1e-5)  # and no other term
        found["loss"].backward()
        sum(expected.values()).backward()  # type: ignore[union-attr]
        for (part, ours), theirs in zip(fast.named_parameters(), twin.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), part
            if ours.grad is not None:
                torch.testing.assert_close(
                    ours.grad, theirs.grad, atol=3e-4, rtol=2e-3, msg=lambda m, n=part: f"{n}: {m}"
                )
        with torch.no_grad():  # any step of an optimiser will do
            for parameter in fast.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
        fast.after_step(moment)
        slow.follow()
        centres = {"cls": "dino", "patch": "ibot"} if name.startswith("ibot") else {"cls": "dino"}
        for theirs_name, ours_name in centres.items():
            torch.testing.assert_close(
                fast.centres[ours_name].value,
                slow.centres[theirs_name],
                atol=1e-5,
                rtol=1e-4,  # type: ignore[union-attr, operator, arg-type]
            )


@pytest.mark.parametrize("name", ["dino_tiny", "ibot_tiny", "ibot_vitb16"])
def test_prototypes_of_fixed_gain_have_unit_length_and_logits_are_cosines(name: str) -> None:
    dino = method(name)
    (whole, local), masked = pictures(0), dino.draw_masks(4, Moment(0, 10, 0), torch.device("cpu"))
    dino.compare(whole, local, masked, 0.04)["loss"].backward()
    for head in (*dino.student_heads.values(), *dino.teacher_heads.values()):
        gain = head.last_layer.get_parameter("parametrizations.weight.original0")  # type: ignore[union-attr]
        assert gain.grad is None
        assert not gain.requires_grad
        torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(12))  # type: ignore[union-attr, operator, arg-type]
        assert head(torch.randn(50, 16)).abs().max() <= 1 + 1e-6
    trained = {id(p) for group in dino.parameter_groups() for p in group.params}
    assert trained == {id(p) for p in dino.parameters() if p.requires_grad}


def test_gains_are_trained_unless_they_are_fixed() -> None:
    gain = method("dino_vits16").student_heads["dino"].last_layer.get_parameter("parametrizations.weight.original0")  # type: ignore[union-attr]
    assert gain.requires_grad
    assert not DINOv2Options().fixed_gain


def test_ibot_has_one_head_and_dino_masks_nothing() -> None:
    assert list(method("ibot_vitb16").student_heads) == ["dino"]
    dino = method("dino_vits16")
    assert list(dino.student_heads) == ["dino"]
    assert dino.draw_masks(4, Moment(0, 10, 0), torch.device("cpu")).chosen is None
    assert not dino.student.mask_token.requires_grad  # type: ignore[union-attr]


def test_the_centre_of_patches_follows_masked_ones_alone_where_that_is_asked_for() -> None:
    values = []
    for which in ("all", "masked"):
        dino = method("ibot_tiny", centre_patches=which)
        whole, _ = pictures(0)
        masked = dino.draw_masks(4, Moment(0, 10, 0), torch.device("cpu"))
        targets = dino.targets(whole, masked, 0.04)
        dino.after_step(Moment(0, 10, 0))
        values.append((targets, dino.centres["ibot"].value))
    (of_all, every), (of_masked, some) = values
    torch.testing.assert_close(of_all, of_masked)
    fresh = method("ibot_tiny")  # whose teacher did not move
    with torch.no_grad():
        said = fresh.teacher_heads["dino"](fresh.teacher(whole).patches.flatten(0, 1))
    torch.testing.assert_close(every, 0.1 * said.mean(dim=0))
    torch.testing.assert_close(some, 0.1 * said[masked.places].mean(dim=0))


def test_a_centre_may_follow_more_than_it_balances() -> None:
    torch.manual_seed(0)
    centre, logits = Centre(5, 0.9), torch.randn(7, 5)
    torch.testing.assert_close(centre(logits[:2], 0.1, logits), (logits[:2] / 0.1).softmax(dim=1))
    centre.follow()
    torch.testing.assert_close(centre.value, 0.1 * logits.mean(dim=0))


def test_the_numbers_of_the_papers() -> None:
    """Shares of what is masked, temperatures and the warmup of the teacher's, the learning rate by the batch."""
    for name in ("dino_vits16", "ibot_vitb16"):
        recipe = recipe_of(name)
        options = DINOv2Options.model_validate(recipe.options)
        assert (options.start_temperature, options.teacher_temperature, options.student_temperature) == (
            0.04,
            0.07,
            0.1,
        )
        steps = recipe.total_steps(1_281_167) / (recipe.epochs or 1)  # of an epoch of ImageNet-1k
        assert math.ceil(steps) * 30 == pytest.approx(options.temperature_warmup, rel=1e-3)
        assert recipe.optimiser.lr == 5e-4 * recipe.batch / 256
        assert (recipe.optimiser.weight_decay, recipe.optimiser.final_weight_decay) == (0.04, 0.4)
    assert options.smallest_block == (14 // 3) ** 2
