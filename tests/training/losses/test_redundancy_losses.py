"""Barlow Twins and VICReg against references written out from the papers, closed forms, and two processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_redundancy import slow_barlow, slow_vicreg, whitened_columns
from torch import Tensor
from two_halves import halves

from granary.training.losses.redundancy import BATCH_NORM_EPS, barlow_terms, off_diagonal, vicreg_terms

WEIGHTS = (25.0, 25.0, 1.0)
Loss = Callable[[Tensor, Tensor], Tensor]


def views(count: int = 7, width: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    first = torch.randn(count, width, dtype=torch.float64) * torch.linspace(0.2, 3, width)
    second = 0.5 * first + torch.randn(count, width, dtype=torch.float64) + 2
    return first.requires_grad_(), second.requires_grad_()


def barlow(first: Tensor, second: Tensor) -> Tensor:
    terms = barlow_terms(first, second)
    return terms.invariance + 0.0051 * terms.redundancy


def vicreg(first: Tensor, second: Tensor) -> Tensor:
    return sum((w * term for w, term in zip(WEIGHTS, vicreg_terms(first, second), strict=True)), torch.zeros(()))


def check_equal(loss: Loss, reference: Loss) -> None:
    """Value and gradient."""
    arguments = views()
    ours, theirs = loss(*arguments), reference(*arguments)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)
    pairs = zip(torch.autograd.grad(ours, arguments), torch.autograd.grad(theirs, arguments), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-9)


def test_barlow_twins_equals_its_equation_in_value_and_gradient() -> None:
    check_equal(barlow, lambda first, second: slow_barlow(first, second, 0.0051, BATCH_NORM_EPS))
    first, second = views()  # the paper's own, without the constant
    torch.testing.assert_close(barlow(first, second), slow_barlow(first, second, 0.0051), rtol=1e-3, atol=0)


def test_vicreg_equals_its_algorithm_in_value_and_gradient() -> None:
    """Traps: biased variance, eps outside the root, covariance averaged over branches, no centring."""
    check_equal(vicreg, lambda first, second: slow_vicreg(first, second, WEIGHTS))


def test_barlow_twins_of_equal_whitened_views_is_nothing() -> None:
    """Trap: normalised along the features, C would not be the identity."""
    rows = whitened_columns(32, 8)
    terms = barlow_terms(rows, rows.clone())
    assert float(terms.invariance) < 1e-8
    assert float(terms.redundancy) < 1e-20


def test_barlow_twins_does_not_know_offset_and_scale_of_a_dimension() -> None:
    first, second = views(32)
    scale, offset = torch.tensor([0.5, 3.0, -2.0, 10.0, 1.0]), torch.arange(5)
    for sign in (scale.abs(), scale):  # a sign turned in both views changes C_ij alone
        changed = barlow(first * sign + offset, second * sign - offset)
        torch.testing.assert_close(changed, barlow(first, second), rtol=1e-3, atol=1e-4)
    assert not torch.isclose(barlow(first * scale, second), barlow(first, second), atol=0.1)


def test_barlow_twins_of_dead_dimensions_is_one_each() -> None:
    """Constant columns have correlation 0: (1 - 0)^2 each, and a finite gradient."""
    rows = torch.ones(6, 4, requires_grad=True)
    terms = barlow_terms(rows, rows * 2)
    assert [float(term.detach()) for term in terms] == [4.0, 0.0]
    (gradient,) = torch.autograd.grad(terms.invariance, rows)
    assert torch.isfinite(gradient).all()


def test_vicreg_of_collapsed_rows_lacks_all_but_a_hundredth() -> None:
    """Trap: with eps outside the root the term would be 1 - 1e-4."""
    rows = torch.full((6, 4), 3.0, dtype=torch.float64, requires_grad=True)
    terms = vicreg_terms(rows, rows)
    assert [float(term.detach()) for term in terms] == [0.0, pytest.approx(0.99, abs=1e-12), 0.0]
    (gradient,) = torch.autograd.grad(terms.variance, rows)
    assert torch.isfinite(gradient).all()


def test_vicreg_of_whitened_rows_is_nothing_beyond_the_distance() -> None:
    rows = whitened_columns(32, 8)  # mean square 1, so that the unbiased variance is 32 / 31
    terms = vicreg_terms(rows, rows + 0.5)
    assert float(terms.invariance) == pytest.approx(0.25)
    assert float(terms.variance) == 0.0
    assert float(terms.covariance) < 1e-20


def test_vicreg_averages_the_hinge_over_views_and_sums_the_covariances() -> None:
    """One view is whitened, the other has two dimensions that are one and the same."""
    good = whitened_columns(32, 2)
    bad = good[:, :1].expand(-1, 2) * 0.5  # variances 0.25 * 32 / 31, covariance as much
    terms = vicreg_terms(good, bad)
    variance = 0.25 * 32 / 31
    assert float(terms.variance) == pytest.approx((1 - (variance + 1e-4) ** 0.5) / 2)
    assert float(terms.covariance) == pytest.approx(2 * variance**2 / 2)


@pytest.mark.parametrize("loss", [barlow, vicreg])
def test_a_loss_knows_neither_the_order_of_pictures_nor_of_views(loss: Loss) -> None:
    first, second = views()
    order = torch.randperm(7)
    torch.testing.assert_close(loss(first[order], second[order]), loss(first, second))
    torch.testing.assert_close(loss(second, first), loss(first, second))
    assert not torch.isclose(loss(first, second[order]), loss(first, second))


@pytest.mark.parametrize("loss", [barlow, vicreg])
def test_a_loss_is_computed_in_float32(loss: Loss) -> None:
    first, second = (rows.detach().bfloat16() for rows in views(64, 16))
    expected = loss(first.float(), second.float())
    with torch.autocast("cpu", torch.bfloat16):
        computed = loss(first, second)
    assert computed.dtype == torch.float32
    assert torch.equal(computed, expected)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_off_diagonal_is_all_but_the_diagonal(width: int) -> None:
    matrix = torch.arange(width * width).view(width, width)
    expected = [int(matrix[i, j]) for i in range(width) for j in range(width) if i != j]
    assert off_diagonal(matrix).flatten().tolist() == expected


@pytest.mark.slow
def test_two_processes_have_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """Trap: statistics of half a batch, or gathered without gradients."""
    losses, arguments = (barlow, vicreg), views(8)
    for loss, (value, gradients) in zip(losses, halves(losses, arguments, tmp_path), strict=True):
        whole = loss(*arguments)
        assert value == pytest.approx(float(whole.detach()), rel=1e-12)
        for ours, theirs in zip(gradients, torch.autograd.grad(whole, arguments), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12, rtol=1e-9)
