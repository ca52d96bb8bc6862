"""MSN against a slow reference, its target, patches and prototypes, and a training that goes on."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from same_training import SGD, VIT, check_near, one_and_two, whole_and_cut
from slow_prototypes import slow_msn
from torch import Tensor
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.training.method import Moment
from granary.training.methods.msn import MSN, MSNOptions
from granary.training.models.vit_config import ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **MSN.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 6, "prototypes": 7, "sinkhorn": 0, "drop": 0.5}
OPTIONS |= {"local_crops": 2, "local_size": 8, "temperature": 0.2, "me_max": 3.0}
NOW = Moment(2, 10, 0)


def method(**changes: Any) -> MSN:
    torch.manual_seed(0)
    model = MSN(CONFIG, MSNOptions(**{**OPTIONS, **PLAIN, **changes}))
    with torch.no_grad():  # else a young target is its encoder
        for p in [*model.target.parameters(), *model.target_projector.parameters()]:
            p.add_(0.02 * torch.randn_like(p))
    return model


def anchors(model: MSN, batch: dict[str, Tensor], moment: Moment = NOW) -> list[Tensor]:
    """The projections of the masked view, then of both small ones, whose BatchNorm sees them together."""
    second = plain_pixels(batch, CONFIG, 1)
    masked = model.projector(model.encoder(second, keep=model.kept(second, moment)).cls)
    small = torch.cat([plain_pixels(batch, CONFIG, view, "local") for view in range(2)])
    return [masked, *model.projector(model.encoder(small).cls).chunk(2)]


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    model, batch = method(), batch_of(5, local=2)
    slow = copy.deepcopy(model)
    target = slow.target_projector(slow.target(plain_pixels(batch, CONFIG, 0)).cls).detach()
    expected = slow_msn(anchors(slow, batch), target, slow.prototypes, 0.2, 0.25, 3.0)
    output = model(batch, NOW)
    torch.testing.assert_close(output["loss"], expected, atol=1e-5, rtol=1e-5)
    output["loss"].backward()
    expected.backward()
    for (name, ours), theirs in zip(model.named_parameters(), slow.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert ours.grad is None
    assert output["features"].shape == (5, 24)
    torch.testing.assert_close(output["teacher"].sum(dim=1), torch.ones(5))


def test_the_whole_view_and_only_it_is_the_target() -> None:
    """Trap: targets from the masked view. Only the first view changes them, and all of its patches do."""
    model, batch = method(), batch_of(4, local=2)
    before = model(batch, NOW)["teacher"]
    second = {**batch, "image": batch["image"].clone()}
    second["image"][:, 1] = 255 - second["image"][:, 1]
    torch.testing.assert_close(model(second, NOW)["teacher"], before)
    for patch in range(16):
        row, column = 4 * (patch // 4), 4 * (patch % 4)
        first = {**batch, "image": batch["image"].clone()}
        first["image"][:, 0, row : row + 4, column : column + 4] = 0
        assert not torch.equal(model(first, NOW)["teacher"], before)


def test_dropped_patches_are_not_seen_and_change_from_step_to_step() -> None:
    model, batch = method(local_crops=0), batch_of(4)
    pixels = plain_pixels(batch, CONFIG, 1)
    kept = model.kept(pixels, NOW)
    assert kept.shape == (4, 8)
    assert torch.equal(kept, model.kept(pixels, Moment(2, 10, 0, rank=1, part=1)))
    assert not torch.equal(kept, model.kept(pixels, Moment(3, 10, 0)))
    loss = model(batch, NOW)["loss"]
    for patch in range(16):
        row, column = 4 * (patch // 4), 4 * (patch % 4)
        changed = {**batch, "image": batch["image"].clone()}
        changed["image"][:, 1, row : row + 4, column : column + 4] = 0
        assert torch.equal(model(changed, NOW)["loss"], loss) == (patch not in kept[0])


def test_sinkhorn_lets_all_prototypes_be_used_alike() -> None:
    model, batch = method(sinkhorn=30, sharpening=1.0), batch_of(14, local=2)
    torch.testing.assert_close(model(batch, NOW)["teacher"].sum(dim=0), torch.full((7,), 2.0), atol=1e-3, rtol=1e-3)
    same = {**batch, "image": batch["image"][:1].expand(14, -1, -1, -1, -1)}  # what has collapsed is told apart by none
    torch.testing.assert_close(model(same, NOW)["teacher"], torch.full((14, 7), 1 / 7), atol=1e-4, rtol=1e-3)


def test_what_is_evaluated_is_the_average_of_the_encoder() -> None:
    model = method(momentum=0.9)
    assert model.evaluated_model() is model.target
    before, source = (next(m.parameters()).clone() for m in (model.target.blocks, model.encoder.blocks))
    projector = model.target_projector[0].weight.clone()  # type: ignore[operator, union-attr]
    model.after_step(Moment(5, 10, 0))  # half way from 0.9 to 1
    torch.testing.assert_close(next(model.target.blocks.parameters()), 0.95 * before + 0.05 * source)
    expected = 0.95 * projector + 0.05 * model.projector[0].weight  # type: ignore[operator, union-attr]
    torch.testing.assert_close(model.target_projector[0].weight, expected)  # type: ignore[union-attr]


def test_all_but_the_target_is_trained_and_prototypes_are_not_decayed() -> None:
    model = method()
    groups = model.parameter_groups()
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in groups for p in group.params} == trained
    assert id(model.prototypes) in {id(p) for group in groups if not group.decay for p in group.params}
    assert not {id(p) for m in (model.target, model.target_projector) for p in m.parameters()} & trained


def test_a_mean_prediction_of_one_prototype_costs_the_logarithm_of_their_number() -> None:
    model, batch = method(temperature=0.001, projector_hidden=[], local_crops=0), batch_of(4)
    batch["image"][:] = 90
    assert float(model(batch, NOW)["me_max"].detach()) == pytest.approx(math.log(7), abs=1e-3)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    options = {**OPTIONS, "sinkhorn": 3}
    whole, again = whole_and_cut({"method": "msn", "model": VIT, "options": options}, tmp_path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    options = {**OPTIONS, "sinkhorn": 3}
    tree = {"method": "msn", "model": VIT, "options": options, "optimiser": SGD}
    check_near(*one_and_two(tree, tmp_path, strategy))
