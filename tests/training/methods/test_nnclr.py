"""NNCLR against a slow reference; its support set, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import RESNET, SGD, VIT, check_near, one_and_two, whole_and_cut
from slow_info_nce import slow_info_nce, unit
from slow_models import check_gradients, precise
from tiny_trainings import tiny_recipe, tiny_run
from torch import Tensor
from torch.nn.functional import normalize
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.nnclr import NNCLR, NNCLROptions
from granary.training.models.vit_config import ViTConfig
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **NNCLR.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16, 16], "projector_width": 8, "predictor_hidden": [16], "queue": 12}
UNCHANGED = {**PLAIN, "second_blur": None, "second_solarize": None}
NOW = Moment(0, 10, 0)


def method(**changes: Any) -> NNCLR:
    torch.manual_seed(0)
    return precise(NNCLR(CONFIG, NNCLROptions(**{**OPTIONS, **UNCHANGED, **changes})))


def slow_nearest(rows: Tensor, support: Tensor) -> Tensor:
    """Equation 2: of the support set the row at the least distance, one row at a time."""
    nearest = [min(support, key=lambda other: float((unit(row) - unit(other)).square().sum())) for row in rows.detach()]
    return torch.stack(nearest)


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    """Rows are the neighbours, columns the predictions of the other view; both ways, halved."""
    fast, batch = method(), batch_of()
    slow = copy.deepcopy(fast)
    z = [slow.projector(slow.encoder(plain_pixels(batch, CONFIG, view).double()).cls) for view in range(2)]
    first, second = (slow.predictor(view) for view in z)
    near = [slow_nearest(view, slow.queue.rows) for view in z]
    reference = (slow_info_nce(near[0], second, 0.1) + slow_info_nce(near[1], first, 0.1)) / 2
    check_gradients(fast, slow, fast(batch, NOW)["loss"], reference)


def test_views_that_change_places_leave_the_loss_as_it_is() -> None:
    batch = batch_of()
    swapped = {name: rows.flip(1) for name, rows in batch.items()}
    torch.testing.assert_close(method()(batch, NOW)["loss"], method()(swapped, NOW)["loss"])


def test_the_first_views_enter_the_support_set_after_the_step() -> None:
    model, batch = method(), batch_of()
    before = model.queue.rows.clone()
    projections = copy.deepcopy(model).embedded(model.pixels(batch))[1]
    model(batch, NOW)
    assert torch.equal(model.queue.rows, before)
    model.after_step(NOW)
    torch.testing.assert_close(model.queue.rows, torch.cat([normalize(projections[0], dim=1), before[4:]]))
    near = model.queue.nearest(projections[0])
    torch.testing.assert_close(near, normalize(projections[0], dim=1))  # each is now its own neighbour


def test_batchnorm_sees_each_view_alone_or_both_together() -> None:
    alone, joint = (method(joint_norm=joint)(batch_of(), NOW)["loss"] for joint in (False, True))
    assert not torch.isclose(alone, joint)


def test_what_is_evaluated_is_the_backbone() -> None:
    model = method()
    output = model(batch_of(), NOW)
    assert model.evaluated_model() is model.encoder
    assert output["features"].shape == (4, 24)
    assert not output["features"].requires_grad


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": "nnclr", "model": RESNET, "options": OPTIONS}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert int(whole["method/queue.place"]) == 6 * 8 % 12


def test_a_queue_that_cannot_hold_a_batch_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options\.queue: 7 is not right: it must hold the 8 pictures of a batch"):
        train(tiny_recipe("nnclr", tiny_run(tmp_path / "run"), tmp_path / "out", {"queue": 7}))


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "model"), [("ddp", RESNET), ("fsdp", VIT)])
def test_two_processes_train_what_one_does(strategy: str, model: dict[str, Any], tmp_path: Path) -> None:
    tree = {"method": "nnclr", "model": model, "options": OPTIONS, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
