"""Barlow Twins: its loss through the whole model, learning rates of biases, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import RESNET, VIT, check_near, one_and_two, whole_and_cut
from slow_redundancy import slow_barlow
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.training.losses.redundancy import BATCH_NORM_EPS
from granary.training.method import Moment
from granary.training.methods.barlow import BarlowOptions, BarlowTwins
from granary.training.models.vit_config import ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=1, heads=2, **BarlowTwins.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 6}
NOW = Moment(0, 10, 0)


def method(**changes: Any) -> BarlowTwins:
    torch.manual_seed(0)
    return BarlowTwins(CONFIG, BarlowOptions(**{**OPTIONS, **PLAIN, **changes}))


def test_the_loss_is_that_of_both_views_each_through_batchnorm_alone() -> None:
    model, batch = method(redundancy=0.1), batch_of(6)
    slow = copy.deepcopy(model)
    output = model(batch, NOW)
    views = [slow.projector(slow.encoder(plain_pixels(batch, CONFIG, view)).cls).double() for view in range(2)]
    expected = slow_barlow(views[0], views[1], 0.1, BATCH_NORM_EPS)
    torch.testing.assert_close(output["loss"].double(), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(output["loss"], output["invariance"] + 0.1 * output["redundancy"])
    joint = method(redundancy=0.1, joint_norm=True)(batch, NOW)["loss"]
    assert not torch.isclose(joint, output["loss"], rtol=1e-3)
    assert output["features"].shape == (6, 24)
    assert model.evaluated_model() is model.encoder


def test_biases_and_norms_have_a_learning_rate_of_their_own() -> None:
    model = method(bias_lr=0.024)
    weights, plain = model.parameter_groups()
    assert (weights.decay, weights.lr_scale, plain.decay, plain.lr_scale) == (True, 1.0, False, 0.024)
    assert {p.ndim for p in plain.params} == {1}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in (weights, plain) for p in group.params} == trained


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_training_goes_on_as_if_it_had_not_stopped(model: dict[str, Any], tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": "barlow", "model": model, "options": OPTIONS}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    check_near(*one_and_two({"method": "barlow", "model": RESNET, "options": OPTIONS}, tmp_path))
