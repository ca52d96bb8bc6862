"""BYOL against a slow reference; its target, its range, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import RESNET, SGD, VIT, check_near, one_and_two, whole_and_cut
from slow_info_nce import slow_distance
from slow_models import check_gradients, precise
from torch import nn
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.training.method import Moment
from granary.training.methods.byol import BYOL, BYOLOptions
from granary.training.models.vit_config import ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **BYOL.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 8, "predictor_hidden": [16]}
UNCHANGED = {**PLAIN, "second_blur": None, "second_solarize": None}
NOW = Moment(0, 10, 0)


def method(moved: bool = True, **changes: Any) -> BYOL:
    torch.manual_seed(0)
    model = BYOL(CONFIG, BYOLOptions(**{**OPTIONS, **UNCHANGED, **changes}))
    return precise(model, [model.target_encoder, model.target_projector] if moved else [])


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    """Each view goes through the networks alone; the target has no gradient."""
    fast, batch = method(), batch_of()
    slow = copy.deepcopy(fast)
    views = [plain_pixels(batch, CONFIG, view).double() for view in range(2)]
    first, second = (slow.predictor(slow.projector(slow.encoder(view).cls)) for view in views)
    with torch.no_grad():
        first_target, second_target = (slow.target_projector(slow.target_encoder(view).cls) for view in views)
    reference = slow_distance(first, second_target) + slow_distance(second, first_target)
    check_gradients(fast, slow, fast(batch, NOW)["loss"], reference)


def test_views_that_change_places_leave_the_loss_as_it_is() -> None:
    batch = batch_of()
    swapped = {name: rows.flip(1) for name, rows in batch.items()}
    torch.testing.assert_close(method()(batch, NOW)["loss"], method()(swapped, NOW)["loss"])


def test_the_loss_is_0_for_predictions_that_are_right_and_8_for_opposite_ones_of_any_length() -> None:
    batch = batch_of()
    batch["image"] = batch["image"][:, :1].expand(-1, 2, -1, -1, -1)
    model = method(moved=False)
    for scale, loss in ((3.0, 0.0), (-0.2, 8.0)):
        model.predictor = nn.Sequential(nn.Linear(8, 8, bias=False).double())
        with torch.no_grad():
            model.predictor[0].weight.copy_(scale * torch.eye(8))  # type: ignore[operator, union-attr]
        assert float(model(batch, NOW)["loss"].detach()) == pytest.approx(loss, abs=1e-9)


def test_batchnorm_sees_each_view_alone_or_both_together() -> None:
    alone, joint = (method(joint_norm=joint)(batch_of(), NOW)["loss"] for joint in (False, True))
    assert not torch.isclose(alone, joint)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (5, 0.998), (10, 1.0)])
def test_the_target_is_the_average_of_weights_and_statistics(step: int, momentum: float) -> None:
    model = method()
    model(batch_of(), NOW)
    before = copy.deepcopy(model.state_dict())
    model.after_step(Moment(step, 10, 0))
    after = model.state_dict()
    targets = [name for name in after if name.startswith("target_") and after[name].is_floating_point()]
    assert any("running_mean" in name for name in targets)
    for name in targets:
        expected = momentum * before[name] + (1 - momentum) * before[name.removeprefix("target_")]
        torch.testing.assert_close(after[name], expected, msg=lambda m, n=name: f"{n}: {m}")


def test_what_is_evaluated_is_the_online_network() -> None:
    model = method()
    output = model(batch_of(), NOW)
    assert model.evaluated_model() is model.encoder
    assert output["features"].shape == (4, 24)
    assert not output["features"].requires_grad
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"encoder", "projector", "predictor"}


def test_the_views_are_those_of_the_paper() -> None:
    """Table 6: colours by 0.4, 0.4, 0.2 and 0.1 in 0.8 of the views; blur 1 and 0.1, solarization 0 and 0.2."""
    first, second = (BYOL(CONFIG, BYOLOptions(**OPTIONS)).changes(view) for view in range(2))
    for view in (first, second):
        assert (view.jitter, view.grey, view.flip) == (0.8, 0.2, 0.5)
        colours = (view.brightness, view.contrast, view.saturation, view.hue)
        assert colours == pytest.approx((0.4, 0.4, 0.2, 0.1))
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": "byol", "model": RESNET, "options": OPTIONS}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "model"), [("ddp", RESNET), ("fsdp", VIT)])
def test_two_processes_train_what_one_does(strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    tree = {"method": "byol", "model": model, "options": OPTIONS, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
