"""SwAV against a slow reference, its prototypes and queue, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from same_training import RESNET, VIT, check_near, one_and_two, whole_and_cut
from slow_prototypes import slow_swav
from torch import Tensor
from two_view_batches import PLAIN, batch_of, plain_pixels

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.methods.swav import SwAV, SwAVOptions
from granary.training.models.vit_config import ViTConfig

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=1, heads=2, **SwAV.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"projector_hidden": [16], "projector_width": 6, "prototypes": 7, "freeze": 1}
OPTIONS |= {"local_crops": 2, "local_size": 8, "epsilon": 0.5}
NOW = Moment(0, 10, 0)


def method(**changes: Any) -> SwAV:
    torch.manual_seed(0)
    return SwAV(CONFIG, SwAVOptions(**{**OPTIONS, **PLAIN, **changes}))


def projections(model: SwAV, batch: dict[str, Tensor]) -> Tensor:
    """All four views (V, B, D): the backbone sees each kind, the projector all at once."""
    features = [
        model.encoder(plain_pixels(batch, CONFIG, view, name)).cls for name in ("image", "local") for view in range(2)
    ]
    return model.projector(torch.cat(features)).unflatten(0, (4, -1))


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    model, batch = method(), batch_of(5, local=2)
    slow = copy.deepcopy(model)
    loss = model(batch, NOW)["loss"]
    expected = slow_swav(projections(slow, batch), slow.prototypes.weight, 0.1, 0.5)
    torch.testing.assert_close(loss.double(), expected.double(), atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert model.projector[0].weight.grad is not None
    torch.testing.assert_close(model.projector[0].weight.grad, slow.projector[0].weight.grad, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(model.encoder.embed.weight.grad, slow.encoder.embed.weight.grad, atol=1e-5, rtol=1e-3)  # type: ignore[union-attr]
    # the gradient is that of unit rows, not of their directions, as the authors': across them the two are one
    across = model.prototypes.weight.grad
    assert across is not None
    weight = model.prototypes.weight.detach()
    along = (across * weight).sum(dim=1, keepdim=True) * weight
    torch.testing.assert_close(across - along, slow.prototypes.weight.grad, atol=1e-5, rtol=1e-3)


def test_prototypes_are_unit_rows_at_every_forward_pass() -> None:
    """Trap: prototypes that grow; here the optimiser's step makes them three times as long."""
    model = method()
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(7))
    with torch.no_grad():
        model.prototypes.weight.mul_(3)
    model(batch_of(4, local=2), NOW)
    model.after_step(Moment(1, 10, 0))
    torch.testing.assert_close(model.prototypes.weight.norm(dim=1), torch.ones(7))


def test_prototypes_are_frozen_at_first() -> None:
    groups = method(freeze=5).parameter_groups()
    assert [(group.start, len(group.params)) for group in groups if group.start] == [(5, 1)]
    model = method(freeze=5)
    before = model.prototypes.weight.clone()
    for step in range(5):
        model(batch_of(4, local=2), Moment(step, 10, 0))
        model.after_step(Moment(step, 10, 0))
    assert torch.equal(before, model.prototypes.weight)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in model.parameter_groups() for p in group.params} == trained


def test_the_queue_takes_part_in_the_codes_of_a_training() -> None:
    """From `queue_start` on; what a step adds takes the place of the oldest rows. Validation is without it."""
    model = method(queue=8, local_crops=0, queue_start=1)
    steps = []
    for step in range(3):
        batch = batch_of(4)
        batch["image"] = (batch["image"] + 40 * step).to(torch.uint8)
        queue = torch.stack([part.rows for part in model.queues])
        slow = copy.deepcopy(model)
        features = [slow.encoder(plain_pixels(batch, CONFIG, view)).cls for view in range(2)]
        rows = F.normalize(slow.projector(torch.cat(features))).unflatten(0, (2, 4))
        steps.append(rows.detach())
        loss = model(batch, Moment(step, 10, 0))["loss"]
        expected = slow_swav(rows, slow.prototypes.weight, 0.1, 0.5, queue if step else None)
        torch.testing.assert_close(loss.double(), expected.double(), atol=1e-5, rtol=1e-5)
        model.after_step(Moment(step, 10, 0))
    queue = torch.stack([part.rows for part in model.queues])
    torch.testing.assert_close(queue, torch.cat([steps[2], steps[1]], dim=1))
    model.eval()
    before = model(batch_of(4), Moment(5, 10, 0))["loss"]
    for part in model.queues:
        part.rows.neg_()
    assert torch.equal(model(batch_of(4), Moment(5, 10, 0))["loss"], before)


def test_pictures_of_a_step_that_is_not_taken_are_not_queued() -> None:
    """A loss that is not finite ends without `after_step`, and the next step begins anew."""
    model, batch = method(queue=8, local_crops=0), batch_of(4)
    before = model.queues[0].rows.clone()
    model({**batch, "image": 255 - batch["image"]}, Moment(0, 10, 0))
    assert torch.equal(model.queues[0].rows, before)
    parts = [model(batch, Moment(1, 10, 0, part=part)) for part in range(2)]
    model.after_step(Moment(1, 10, 0))
    assert torch.equal(model.queues[0].rows[:4], model.queues[0].rows[4:])
    torch.testing.assert_close(parts[0]["teacher"].sum(dim=1), torch.ones(4))


def test_a_queue_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options.queue: 4 is not right: it must hold the 8 pictures"):
        whole_and_cut({"method": "swav", "model": VIT, "options": {**OPTIONS, "queue": 4}}, tmp_path)


@pytest.mark.parametrize("model", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_training_with_a_queue_goes_on_as_if_it_had_not_stopped(model: dict[str, Any], tmp_path: Path) -> None:
    tree = {"method": "swav", "model": model, "options": {**OPTIONS, "queue": 16}}
    whole, again = whole_and_cut(tree, tmp_path)
    assert int(whole["method/queues.0.place"]) == 0  # 6 times 8 of 16: the random rows are gone
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    """Codes are those of the whole batch and queue."""
    options = {**OPTIONS, "queue": 8, "freeze": 0, "local_crops": 0}
    check_near(*one_and_two({"method": "swav", "model": RESNET, "options": options}, tmp_path, strategy))
