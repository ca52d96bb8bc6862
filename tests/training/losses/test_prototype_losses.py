"""SwAV's and MSN's losses against references written out from the papers, closed forms, and two processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slow_prototypes import slow_msn, slow_swav
from torch import Tensor
from two_halves import halves

from granary.training.losses.processes import scattered
from granary.training.losses.prototypes import cosines, mean_entropy_gap, sharpened, swapped_prediction
from granary.training.losses.self_distillation import sinkhorn_knopp, soft_cross_entropy

CLOSE = {"atol": 2e-6, "rtol": 2e-5}  # cross-entropies are computed in float32


def rows_and_prototypes(views: int = 4, pictures: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (views, pictures, 6) and seven prototypes."""
    torch.manual_seed(seed)
    rows = torch.randn(views, pictures, 6, dtype=torch.float64, requires_grad=True)
    return rows, torch.randn(7, 6, dtype=torch.float64, requires_grad=True)


def msn(anchors: Tensor, targets: Tensor, prototypes: Tensor, sinkhorn: int = 0) -> Tensor:
    """The loss of anchors (V, B, D) and targets (B, D) with temperature 0.3, T 0.5 and lambda 2."""
    scores = cosines(anchors, prototypes)
    goals = sharpened(cosines(targets, prototypes), 0.3, 0.5, sinkhorn)
    return soft_cross_entropy(scores, goals, 0.3).mean() + 2.0 * mean_entropy_gap(scores.flatten(0, 1), 0.3)


@pytest.mark.parametrize("views", [2, 4])
def test_swapped_prediction_equals_the_equation_in_value_and_gradient(views: int) -> None:
    """Trap: codes that carry a gradient, pairs of a view with itself, or small crops that give codes."""
    rows, raw = rows_and_prototypes(views)
    prototypes = F.normalize(raw.detach(), dim=1).requires_grad_()
    scores = cosines(rows, prototypes)
    codes = torch.stack([sinkhorn_knopp(view, 0.5) for view in scores[:2]])
    assert not codes.requires_grad
    ours, theirs = swapped_prediction(scores, codes, 0.1), slow_swav(rows, prototypes, 0.1, 0.5)
    torch.testing.assert_close(ours.double(), theirs, **CLOSE)
    pairs = zip(*(torch.autograd.grad(loss, (rows, prototypes)) for loss in (ours, theirs)), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)


def test_sinkhorn_is_doubly_stochastic() -> None:
    codes = sinkhorn_knopp(cosines(*rows_and_prototypes(1, 64))[0], 0.3, 30)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((7,), 64 / 7), atol=1e-3, rtol=1e-4)


def test_msn_equals_the_equation_in_value_and_gradient() -> None:
    rows, prototypes = rows_and_prototypes()
    ours = msn(rows[1:], rows[0], prototypes)
    theirs = slow_msn([*rows[1:]], rows[0], prototypes, 0.3, 0.5, 2.0)
    torch.testing.assert_close(ours.double(), theirs.double(), **CLOSE)
    pairs = zip(*(torch.autograd.grad(loss, (rows, prototypes)) for loss in (ours, theirs)), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-4)


def test_the_mean_entropy_is_largest_for_a_uniform_mean() -> None:
    """Sheet: 0 where the mean prediction is uniform, ln K where it is one-hot."""
    certain = torch.eye(8)  # each picture is sure of another prototype: the mean is uniform all the same
    assert float(mean_entropy_gap(certain, 0.01)) == pytest.approx(0, abs=1e-6)
    assert float(mean_entropy_gap(torch.zeros(5, 8), 0.1)) == pytest.approx(0, abs=1e-6)
    same = torch.eye(8)[:1].repeat(5, 1).requires_grad_()
    gap = mean_entropy_gap(same, 0.001)  # the seven others are 0 in float32
    assert float(gap.detach()) == pytest.approx(math.log(8), abs=1e-5)
    assert torch.isfinite(torch.autograd.grad(gap, same)[0]).all()


def test_sharpening_is_a_power_of_the_prediction() -> None:
    scores = cosines(*rows_and_prototypes(1))[0]
    p = (scores / 0.1).softmax(dim=1) ** 4
    torch.testing.assert_close(sharpened(scores, 0.1, 0.25), p / p.sum(dim=1, keepdim=True))
    torch.testing.assert_close(sharpened(scores, 0.1, 1.0), (scores / 0.1).softmax(dim=1))


def test_sinkhorn_begins_with_rows_that_sum_to_one() -> None:
    """As in the authors' code: what is balanced are the sharpened predictions, not their unnormalised powers."""
    scores = cosines(*rows_and_prototypes(1))[0].detach()
    q = sharpened(scores, 0.1, 0.5)
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
    torch.testing.assert_close(sharpened(scores, 0.1, 0.5, 3).double(), q * q.shape[0], atol=1e-6, rtol=1e-4)


def test_cosines_know_no_lengths_and_are_computed_in_float32() -> None:
    rows, prototypes = rows_and_prototypes()
    torch.testing.assert_close(cosines(rows * 3, prototypes * 0.1), cosines(rows, prototypes))
    half = rows.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scores = cosines(half, prototypes.float())
    assert torch.equal(scores, cosines(half.float(), prototypes.float()))


def msn_of_pictures(rows: Tensor) -> Tensor:
    """MSN's loss of pictures (B, V, D), the targets first, with Sinkhorn."""
    views = rows.transpose(0, 1)
    return msn(views[1:], views[0], rows_and_prototypes()[1].detach(), 3)


def swav_of_pictures(rows: Tensor) -> Tensor:
    """SwAV's loss of pictures (B, V, D) with a queue of nine."""
    queue, prototypes = (x.detach() for x in rows_and_prototypes(1, 9, seed=1))
    scores = cosines(rows.transpose(0, 1), prototypes)
    earlier = cosines(scattered(queue[0]), prototypes)
    codes = [sinkhorn_knopp(torch.cat([earlier, view]), 0.5)[-len(view) :] for view in scores[:2]]
    return swapped_prediction(scores, torch.stack(codes), 0.1)


@pytest.mark.slow
def test_two_processes_have_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """Trap: the entropy of the mean prediction of half a batch, or codes of half a batch."""
    losses = (msn_of_pictures, swav_of_pictures)
    rows = rows_and_prototypes(pictures=8)[0].detach().transpose(0, 1).contiguous().requires_grad_()
    for loss, (value, gradients) in zip(losses, halves(losses, [rows], tmp_path), strict=True):
        whole = loss(rows)
        assert value == pytest.approx(float(whole.detach()), rel=1e-5)
        np.testing.assert_allclose(gradients[0], torch.autograd.grad(whole, rows)[0].numpy(), atol=1e-6, rtol=1e-4)
