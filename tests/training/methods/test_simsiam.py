"""SimSiam against a slow reference; stop-gradient, the predictor's learning rate, and a training that goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import RESNET, SGD, VIT, check_near, one_and_two, whole_and_cut
from slow_info_nce import slow_distance
from slow_models import check_gradients, precise
from tiny_trainings import tiny_recipe, tiny_run
from torch import nn
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.training.method import Moment, ParameterGroup
from granary.training.methods.simsiam import SimSiam, SimSiamOptions
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import Optimiser
from granary.training.run import loop
from granary.training.run.optimisers import make_optimiser

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **SimSiam.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16, 16], "projector_width": 8, "predictor_hidden": [12]}
NOW = Moment(0, 10, 0)


def method(**changes: Any) -> SimSiam:
    torch.manual_seed(0)
    return precise(SimSiam(CONFIG, SimSiamOptions(**{**OPTIONS, **PLAIN, **changes})))


@pytest.mark.parametrize("stopped", [True, False])
def test_loss_and_gradients_equal_the_slow_reference_with_the_gradient_stopped(stopped: bool) -> None:
    """The negative cosine is half of the squared distance, less 1; each view goes through the networks alone."""
    fast, batch = method(), batch_of()
    slow = copy.deepcopy(fast)
    views = [plain_pixels(batch, CONFIG, view).double() for view in range(2)]
    z = [slow.projector(slow.encoder(view).cls) for view in views]
    first, second = (slow.predictor(view) for view in z)
    targets = [view.detach() for view in z] if stopped else z
    reference = (slow_distance(first, targets[1]) + slow_distance(second, targets[0])) / 4 - 1
    loss = fast(batch, NOW)["loss"]
    if stopped:
        check_gradients(fast, slow, loss, reference)
    else:
        with pytest.raises(AssertionError, match="not close"):
            check_gradients(fast, slow, loss, reference)


def test_views_that_change_places_leave_the_loss_as_it_is() -> None:
    batch = batch_of()
    swapped = {name: rows.flip(1) for name, rows in batch.items()}
    torch.testing.assert_close(method()(batch, NOW)["loss"], method()(swapped, NOW)["loss"])


def test_the_loss_of_right_predictions_is_minus_1() -> None:
    model, batch = method(), batch_of()
    batch["image"] = batch["image"][:, :1].expand(-1, 2, -1, -1, -1)
    model.predictor = nn.Sequential(nn.Identity())
    assert float(model(batch, NOW)["loss"].detach()) == pytest.approx(-1)


def test_projections_are_standardised_and_predictions_are_not() -> None:
    model = method()
    said: list[torch.Tensor] = []
    for part in (model.projector, model.predictor):
        part.register_forward_hook(lambda module, given, output: said.append(output))
    model(batch_of(16), NOW)
    deviations = [output.var(dim=0, correction=0).sub(1).abs().max() < 1e-2 for output in said]
    assert deviations == [True, True, False, False]


def test_batchnorm_sees_each_view_alone_or_both_together() -> None:
    alone, joint = (method(joint_norm=joint)(batch_of(), NOW)["loss"] for joint in (False, True))
    assert not torch.isclose(alone, joint)


def test_what_is_evaluated_is_the_backbone() -> None:
    model = method()
    output = model(batch_of(), NOW)
    assert model.evaluated_model() is model.encoder
    assert output["features"].shape == (4, 24)
    assert not output["features"].requires_grad


@pytest.mark.parametrize("constant", [True, False])
def test_the_learning_rate_of_the_predictor_is_constant(
    constant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []

    def noting(options: Optimiser, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        optimiser = make_optimiser(options, groups)
        optimiser.register_step_pre_hook(
            lambda taken, *given: rates.append([group["lr"] for group in taken.param_groups])
        )
        return optimiser

    monkeypatch.setattr(loop, "make_optimiser", noting)
    options = {**OPTIONS, "constant_lr": constant}
    optimiser = {"lr": 0.1, "final_lr": 0.0, "warmup": 2}
    loop.train(
        tiny_recipe("simsiam", tiny_run(tmp_path / "run"), tmp_path / "out", options, steps=6, optimiser=optimiser)
    )
    scheduled = [0.0, 0.05, 0.1, 0.08535534, 0.05, 0.01464466]
    for at_step, rate in zip(rates, scheduled, strict=True):
        assert at_step[:4] == pytest.approx([rate] * 4)  # backbone and projector, with and without decay
        assert at_step[4:] == pytest.approx([0.1 if constant else rate] * 2)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": "simsiam", "model": RESNET, "options": OPTIONS}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "model"), [("ddp", RESNET), ("fsdp", VIT)])
def test_two_processes_train_what_one_does(strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    tree = {"method": "simsiam", "model": model, "options": OPTIONS, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
