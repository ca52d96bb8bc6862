"""The method's reference toy: one Gaussian class, a linear classifier, the analytic denoiser; published means."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from granary.synth.feedback.guidance import criteria
from granary.synth.feedback.guidance.hooks import Feedback
from granary.synth.feedback.guidance.options import GuidanceOptions


class Analytic(nn.Module):
    """The true epsilon of N((2, 0), I): sqrt(1 - abar) (x - sqrt(abar) mu)."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        abar = self.scheduler.alphas_cumprod[t]
        mean = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1)
        return ((1 - abar).sqrt() * (x - abar.sqrt() * mean),)


def uncertainty(x: Tensor, weight: float = 1.0) -> Tensor:
    """The entropy of a classifier with logits (4 x1, 0)."""
    first = 4 * x.flatten(1)[:, 0]
    return weight * criteria.entropy(torch.stack([first, torch.zeros_like(first)], dim=1))


@functools.cache
def final(rule: str, omega: float, every: int = 1, weight: float = 1.0) -> tuple[float, float, Tensor]:
    """Return the mean final entropy, the deviation of x1 and the samples; 4,000 of them, common random numbers."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler = DDIMScheduler(**settings)
    denoiser = Analytic(scheduler)
    options = GuidanceOptions(rule=rule, omega=omega, every=every)  # type: ignore[arg-type]
    feedback = Feedback(options, denoiser, scheduler, functools.partial(uncertainty, weight=weight), 4000)
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).view(4000, 2, 1, 1)
    scheduler.set_timesteps(30)
    with feedback.attached(), torch.no_grad():
        for t in scheduler.timesteps:
            z = scheduler.step(denoiser(z, t)[0], t, z).prev_sample
    return float(uncertainty(z).mean()), float(z[:, 0].std()), z


@pytest.mark.parametrize(("omega", "mean"), [(0, 0.073), (1, 0.094), (4, 0.158), (16, 0.288)])
def test_score_rule_at_every_step(omega: float, mean: float) -> None:
    assert final("score", omega)[0] == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize(("every", "omega", "mean"), [(5, 0.01, 0.082), (5, 0.03, 0.100), (5, 0.1, 0.182)])
def test_released_rule_at_every_fifth_step(every: int, omega: float, mean: float) -> None:
    assert final("normalised", omega, every)[0] == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize(("omega", "mean"), [(0.01, 0.122), (0.03, 0.261), (0.1, 0.614)])
def test_released_rule_at_every_step(omega: float, mean: float) -> None:
    assert final("normalised", omega)[0] == pytest.approx(mean, rel=0.15)


@pytest.mark.parametrize(
    ("rule", "every", "omegas"),
    [
        ("score", 1, (-4, 0, 1, 4, 16)),
        ("normalised", 5, (-0.03, 0, 0.01, 0.03, 0.1)),
        ("normalised", 1, (-0.03, 0, 0.01, 0.03, 0.1)),
    ],
)
def test_the_criterion_rises_strictly_with_omega(rule: str, every: int, omegas: tuple[float, ...]) -> None:
    means = [final(rule, omega, every)[0] for omega in omegas]
    assert all(a < b for a, b in itertools.pairwise(means))


def test_the_wrong_sign_would_lower_the_criterion_as_published() -> None:
    """The follow-up's printed sign, eps + omega grad, gives 0.010 at 4 without its sqrt(1 - abar); ours at -4 falls."""
    assert final("score", -4)[0] < 0.5 * final("score", 0)[0]


def test_a_large_normalised_step_collapses_onto_the_boundary() -> None:
    assert final("normalised", 0)[1] == pytest.approx(0.97, rel=0.15)
    assert final("normalised", 0.1)[1] == pytest.approx(0.20, rel=0.15)


def test_the_normalised_step_ignores_the_criterions_scale_and_the_score_form_does_not() -> None:
    a, b = final("normalised", 0.03, 5)[2], final("normalised", 0.03, 5, 10.0)[2]
    torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)  # the released 1e-8 beside |G| shows at tiny gradients
    torch.testing.assert_close(final("score", 4, 1, 4.0)[2], final("score", 16)[2], atol=1e-4, rtol=1e-4)
    assert final("score", 4, 1, 4.0)[0] > 1.5 * final("score", 4)[0]
