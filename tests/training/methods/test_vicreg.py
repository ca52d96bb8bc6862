"""VICReg: its loss through the whole model, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import RESNET, VIT, check_near, one_and_two, whole_and_cut
from slow_redundancy import slow_vicreg
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.training.method import Moment
from granary.training.methods.vicreg import VICReg, VICRegOptions
from granary.training.models.vit_config import ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=1, heads=2, **VICReg.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 6}
NOW = Moment(0, 10, 0)


def method(**changes: Any) -> VICReg:
    torch.manual_seed(0)
    return VICReg(CONFIG, VICRegOptions(**{**OPTIONS, **PLAIN, **changes}))


def test_the_loss_is_that_of_both_views_each_through_batchnorm_alone() -> None:
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}
    model, batch = method(**weights), batch_of(6)
    slow = copy.deepcopy(model)
    output = model(batch, NOW)
    views = [slow.projector(slow.encoder(plain_pixels(batch, CONFIG, view)).cls).double() for view in range(2)]
    torch.testing.assert_close(output["loss"].double(), slow_vicreg(*views, (2.0, 3.0, 5.0)), atol=1e-5, rtol=1e-5)
    terms = [weight * output[name] for name, weight in weights.items()]
    torch.testing.assert_close(output["loss"], torch.stack(terms).sum())
    assert not torch.isclose(method(**weights, joint_norm=True)(batch, NOW)["loss"], output["loss"], rtol=1e-3)
    assert output["features"].shape == (6, 24)
    assert model.evaluated_model() is model.encoder


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_training_goes_on_as_if_it_had_not_stopped(model: dict[str, Any], tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": "vicreg", "model": model, "options": OPTIONS}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    check_near(*one_and_two({"method": "vicreg", "model": RESNET, "options": OPTIONS}, tmp_path))
