"""W-MSE: whitening, its loss against a slow reference, its sub-batches, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_training import RESNET, VIT, check_near, one_and_two, whole_and_cut
from slow_redundancy import slow_wmse, whitened_columns
from tiny_trainings import tiny_recipe, tiny_run
from torch import Tensor
from two_halves import halves
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.curation.errors import UserError
from granary.training.losses.processes import gathered
from granary.training.losses.redundancy import sub_batches, whitened, wmse
from granary.training.method import Moment
from granary.training.methods.wmse import ORDERS, WMSE, WMSEOptions
from granary.training.models.vit_config import ViTConfig
from granary.training.run.loop import train

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=1, heads=2, **WMSE.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 3, "sub_batch": 5, "iterations": 2}
OPTIONS |= {"shrinkage": 0.1}
NOW = Moment(1, 10, 0)


def views(count: int = 3, pictures: int = 12, width: int = 3) -> Tensor:
    torch.manual_seed(0)
    shared = torch.randn(pictures, width, dtype=torch.float64)
    noise = torch.randn(count, pictures, width, dtype=torch.float64)
    return ((shared + noise) @ torch.randn(width, width, dtype=torch.float64) + 5).requires_grad_()


def cut(pictures: int = 12, size: int = 5, iterations: int = 2, seed: int = 0) -> Tensor:
    return sub_batches(pictures, size, iterations, np.random.default_rng(seed))


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_the_loss_equals_the_slow_reference_in_value_and_gradient(unit_length: bool, shrinkage: float) -> None:
    rows, parts = views(), cut()
    ours, theirs = wmse(rows, parts, unit_length, shrinkage), slow_wmse(rows, parts, unit_length, shrinkage)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(loss, rows)[0] for loss in (ours, theirs)), atol=1e-9, rtol=1e-7)


def test_whitened_rows_have_no_mean_and_the_identity_as_covariance() -> None:
    rows = whitened(views(4, 20).detach())
    torch.testing.assert_close(rows.mean(dim=1), torch.zeros(4, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    covariance = torch.stack([view.T.cov() for view in rows])
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))


def test_white_rows_stay_as_they_are() -> None:
    rows = whitened_columns(20, 3) * (19 / 20) ** 0.5  # mean square 1 to unbiased variance 1
    torch.testing.assert_close(whitened(rows), rows)


def test_whitening_forgets_a_change_of_scale_of_all_dimensions() -> None:
    """Scales and offsets of dimensions, and more: any lower triangular map with a positive diagonal."""
    rows = views(1)[0].detach()
    triangle = torch.tensor([[2.0, 0, 0], [-1, 0.5, 0], [3, 1, 4]], dtype=torch.float64)
    torch.testing.assert_close(whitened(rows @ triangle.T - 7), whitened(rows))


def test_equal_views_have_no_loss_and_unrelated_ones_that_of_a_right_angle() -> None:
    rows = views(1, 4000, 8).detach()
    parts = cut(4000, 400, 1)
    assert float(wmse(rows.expand(2, -1, -1), parts)) == pytest.approx(0, abs=1e-12)
    other = torch.stack([rows[0], rows[0].roll(1, 0)])
    assert float(wmse(other, parts)) == pytest.approx(2, abs=0.1)
    assert float(wmse(other, parts, unit_length=False)) == pytest.approx(2, abs=0.1)


def test_a_singular_covariance_gives_no_number_and_no_error() -> None:
    """The step is then not taken; shrinkage helps."""
    rows = torch.ones(2, 12, 3).requires_grad_()
    assert torch.isnan(wmse(rows, cut()))
    assert torch.isfinite(wmse(rows, cut(), shrinkage=0.1))


def test_sub_batches_hold_each_picture_at_most_once_and_differ_between_iterations() -> None:
    parts = cut(13, 5, 3)
    assert parts.shape == (3, 2, 5)
    assert all(len(set(part.flatten().tolist())) == 10 for part in parts)
    assert not torch.equal(parts[0], parts[1])
    assert torch.equal(parts, cut(13, 5, 3))
    assert not torch.equal(parts, cut(13, 5, 3, seed=1))
    with pytest.raises(ValueError, match="batch of all processes has 4 pictures"):
        cut(4, 5)


def test_the_loss_is_computed_in_float32() -> None:
    rows = views(pictures=60).detach().bfloat16()
    expected = wmse(rows.float(), cut(60, 20))
    with torch.autocast("cpu", torch.bfloat16):
        loss = wmse(rows, cut(60, 20))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def of_pictures(rows: Tensor) -> Tensor:
    """The loss of pictures (n, V, K) of all processes."""
    return wmse(gathered(rows)[0].transpose(0, 1), cut())


@pytest.mark.slow
def test_two_processes_have_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """Trap: each whitens its own half."""
    rows = views().detach().transpose(0, 1).contiguous().requires_grad_()
    whole = of_pictures(rows)
    ((value, (gradient,)),) = halves([of_pictures], [rows], tmp_path)
    assert value == pytest.approx(float(whole.detach()), rel=1e-12)
    np.testing.assert_allclose(gradient, torch.autograd.grad(whole, rows)[0].numpy(), atol=1e-12, rtol=1e-8)


def method(**changes: Any) -> WMSE:
    torch.manual_seed(0)
    return WMSE(CONFIG, WMSEOptions(**{**OPTIONS, **PLAIN, **changes}))


def test_the_method_draws_the_same_sub_batches_on_all_processes() -> None:
    model, batch = method(), batch_of(12)
    slow = copy.deepcopy(model)
    pixels = torch.cat([plain_pixels(batch, CONFIG, view) for view in range(2)])
    rows = slow.projector(slow.encoder(pixels).cls).unflatten(0, (2, 12))
    parts = sub_batches(12, 5, 2, NOW.generator(ORDERS, 0, shared=True))
    output = model(batch, NOW)
    torch.testing.assert_close(output["loss"], slow_wmse(rows, parts, True, 0.1), atol=1e-5, rtol=1e-4)
    assert torch.equal(method()(batch, Moment(1, 10, 0, rank=1))["loss"], output["loss"])
    assert not torch.equal(method()(batch, Moment(2, 10, 0))["loss"], output["loss"])
    assert model.evaluated_model() is model.encoder


def test_there_may_be_more_than_two_views() -> None:
    model = method(samples=4)
    assert model.views()["image"].count == 4
    batch = batch_of(12) | {"image": torch.cat([batch_of(12)["image"], 255 - batch_of(12)["image"]], dim=1)}
    batch["image_draws"] = batch["image_draws"].repeat(1, 2, 1)
    assert torch.isfinite(model(batch, NOW)["loss"])


def test_sub_batches_that_cannot_be_whitened_are_said() -> None:
    with pytest.raises(UserError, match=r"options.sub_batch: 3 is not right: .* 3 dimensions"):
        method(sub_batch=3)
    with pytest.raises(UserError, match=r"options.sub_batch: 5 is not right: .* 4 pictures"):
        method()(batch_of(4), NOW)


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_training_goes_on_as_if_it_had_not_stopped(model: dict[str, Any], tmp_path: Path) -> None:
    whole, again = whole_and_cut({"method": "wmse", "model": model, "options": OPTIONS}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    options = {**OPTIONS, "projector_width": 2, "sub_batch": 8, "shrinkage": 0.3}  # else rounding errors grow too fast
    tree = {"method": "wmse", "model": RESNET, "options": options, "batch": 16, "optimiser": {"lr": 1e-4, "eps": 1e-4}}
    check_near(*one_and_two(tree, tmp_path))


def test_a_sub_batch_that_a_batch_cannot_fill_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options\.sub_batch: 9 is not right: a batch has 8 pictures"):
        train(tiny_recipe("wmse", tiny_run(tmp_path / "run"), tmp_path / "out", {"sub_batch": 9}))
    assert not (tmp_path / "out" / "recipe.yaml").exists()
