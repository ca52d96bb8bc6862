"""Facts about the criteria: closed forms of values and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from granary.synth.feedback.guidance import criteria


def logits(n: int = 5, k: int = 7) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(0)).double().requires_grad_()


def gradient(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(values.sum(), x)[0]


def test_loss_is_minus_the_log_probability_and_its_gradient_is_p_minus_onehot() -> None:
    z, y = logits(), torch.tensor([0, 1, 2, 3, 6])
    p = z.softmax(1)
    values = criteria.loss(z, y)
    torch.testing.assert_close(values.double(), -p[torch.arange(5), y].log(), atol=1e-6, rtol=1e-6)
    expected = p - torch.nn.functional.one_hot(y, 7)
    torch.testing.assert_close(gradient(values, z), expected, atol=1e-6, rtol=1e-6)


def test_entropy_agrees_with_scipy_and_its_gradient_goes_through_both_factors() -> None:
    z = logits()
    p = z.softmax(1)
    values = criteria.entropy(z)
    np.testing.assert_allclose(values.detach(), scipy.stats.entropy(p.detach().numpy(), axis=1), rtol=1e-6)
    expected = -p * (p.log() + values.double()[:, None])
    torch.testing.assert_close(gradient(values, z), expected, atol=1e-6, rtol=1e-6)


def test_entropy_is_at_its_top_and_flat_for_uniform_logits() -> None:
    z = torch.full((1, 7), 3.0, requires_grad=True)
    values = criteria.entropy(z)
    assert values.item() == pytest.approx(math.log(7))
    assert gradient(values, z).abs().max() < 1e-6


def test_entropy_of_certainty_is_zero_with_a_finite_gradient() -> None:
    z = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    values = criteria.entropy(z)
    assert values.item() == 0
    assert gradient(values, z).isfinite().all()


def test_hardness_is_minus_the_log_density_of_scipy() -> None:
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=4), rng.normal(size=(4, 4))
    covariance, rows = root @ root.T + 0.1 * np.eye(4), rng.normal(size=(6, 4))
    factor = np.linalg.cholesky(covariance)
    log_norm = 2 * np.log(np.diag(factor)).sum() + 4 * np.log(2 * np.pi)
    values = criteria.hardness(
        torch.from_numpy(rows),
        torch.from_numpy(mean).expand(6, 4),
        torch.from_numpy(np.linalg.inv(factor)).expand(6, 4, 4),
        torch.full((6,), log_norm, dtype=torch.float64),
    )
    np.testing.assert_allclose(values, -scipy.stats.multivariate_normal(mean, covariance).logpdf(rows), rtol=1e-9)
