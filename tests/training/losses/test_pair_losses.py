"""Losses of two views against references written out from the papers, and on two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slow_pairs import slow_nt_xent
from torch import Tensor
from two_halves import halves

from granary.training.losses.pairs import nt_xent


def views(count: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return tuple(torch.randn(count, width, dtype=torch.float64, requires_grad=True) for _ in range(2))  # type: ignore


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_equation_in_value_and_gradient(temperature: float) -> None:
    first, second = views()
    loss, reference = nt_xent(first, second, temperature), slow_nt_xent(first, second, temperature)
    torch.testing.assert_close(loss, reference, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(value, (first, second)) for value in (loss, reference))
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-10)


def test_nt_xent_is_a_cross_entropy_of_the_similarities_without_the_diagonal() -> None:
    first, second = views(8)
    rows = F.normalize(torch.cat([first, second]), dim=1)  # all first views, then all second
    logits = rows @ rows.T / 0.2 - torch.diag(torch.full((16,), math.inf, dtype=torch.float64))
    expected = F.cross_entropy(logits, torch.cat([torch.arange(8, 16), torch.arange(8)]))
    torch.testing.assert_close(nt_xent(first, second, 0.2), expected)


def test_rows_that_are_all_one_have_the_loss_of_a_guess() -> None:
    """Trap: the row itself among the negatives, or the positive twice, gives ln 2B or another number."""
    constant = torch.ones(64, 8)
    assert float(nt_xent(constant, 3 * constant, 0.1)) == pytest.approx(math.log(127), abs=1e-5)
    assert math.log(127) == pytest.approx(4.844187, abs=1e-6)


def test_orthogonal_pictures_with_equal_views_have_the_loss_in_closed_form() -> None:
    """Of 2B - 1 others the positive is at cosine 1 and 2B - 2 at 0: ln(1 + (2B - 2) exp(-1 / t))."""
    rows = torch.eye(16)
    assert float(nt_xent(rows, rows, 0.5)) == pytest.approx(math.log1p(30 * math.exp(-2)), abs=1e-5)


def test_nt_xent_knows_neither_lengths_nor_the_order_of_pictures_and_views() -> None:
    first, second = views()
    loss, order = nt_xent(first, second, 0.2), torch.randperm(6)
    scales = torch.rand(6, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(nt_xent(first * scales, second * 7, 0.2), loss)
    torch.testing.assert_close(nt_xent(second, first, 0.2), loss)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.2), loss)
    assert not torch.isclose(nt_xent(first, second[order], 0.2), loss)


def test_nt_xent_is_computed_in_float32() -> None:
    first, second = (rows.detach().float() for rows in views(32, 16))
    expected = nt_xent(first.bfloat16().float(), second.bfloat16().float(), 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(first.bfloat16(), second.bfloat16(), 0.05)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def sharp(first: Tensor, second: Tensor) -> Tensor:
    return nt_xent(first, second, 0.2)


def test_two_processes_have_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """Trap: rows gathered without gradients, or positives numbered as on the first process."""
    both = views(8)
    loss = sharp(*both)
    ((value, gradients),) = halves([sharp], both, tmp_path)
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    for ours, whole in zip(gradients, torch.autograd.grad(loss, both), strict=True):
        np.testing.assert_allclose(ours, whole.numpy(), atol=1e-12, rtol=1e-9)
