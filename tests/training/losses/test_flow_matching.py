"""Flow matching: an oracle leads back to the data, and every step is that of diffusers' scheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from granary.training.losses.flow_matching import TIMES, flow_loss, flowed, noised, sigmas_of


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    data, noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return data, noise


@pytest.mark.parametrize("steps", [1, 4, 24])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_with_the_true_velocity_steps_lead_to_the_data(steps: int, shift: float) -> None:
    data, noise = pair()
    found = flowed(lambda x, t: noise - data, noise, sigmas_of(steps, shift))
    assert torch.allclose(found, data, atol=1e-6)


def test_a_shift_of_three_moves_the_levels_up() -> None:
    assert sigmas_of(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert sigmas_of(4, 3).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_points_times_and_steps_are_those_of_diffusers(shift: float) -> None:
    scheduler_of = pytest.importorskip("diffusers", reason="diffusers (extra sample) is not installed")
    scheduler = scheduler_of.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    ours = sigmas_of(8, shift)
    assert torch.allclose(scheduler.sigmas.double(), ours, atol=1e-6)
    assert torch.allclose(scheduler.timesteps.double(), TIMES * ours[:-1], atol=1e-3)
    data, noise = pair()
    weights, told = torch.randn(5, 5, generator=torch.Generator().manual_seed(3)) / 5, []

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        told.append(float(time[0]))
        return torch.tanh(x @ weights) + time[0] / TIMES

    sample = noise
    for time in scheduler.timesteps:
        level = torch.full((3,), float(scheduler.sigmas[scheduler.index_for_timestep(time)]))
        expected = scheduler.scale_noise(data, time.expand(1), noise)
        assert torch.allclose(noised(data, noise, level), expected, atol=1e-6)
        sample = scheduler.step(torch.tanh(sample @ weights) + time / TIMES, time, sample).prev_sample
    assert torch.allclose(flowed(velocity, noise, ours), sample, atol=1e-5)
    assert told == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)


def test_the_loss_is_that_of_a_loop_in_value_and_gradient() -> None:
    data, noise = pair()
    sigma = torch.tensor([0.0, 0.3, 1.0])
    one = torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).requires_grad_()
    other = one.detach().clone().requires_grad_()
    loss = flow_loss(lambda x, t: x @ one * t[:, None, None] / TIMES, data, noise, sigma)
    slow = torch.zeros(())
    for number, level in enumerate(sigma.tolist()):
        for row in range(4):
            point = (1 - level) * data[number, row] + level * noise[number, row]
            slow = slow + ((level * point @ other - (noise - data)[number, row]) ** 2).sum()
    slow = slow / data.numel()
    assert torch.allclose(loss, slow, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(loss, one)[0], torch.autograd.grad(slow, other)[0], atol=1e-5)


def test_gradients_go_through_all_steps() -> None:
    """x' = -a x from sigma 1 to 0 by n steps is (1 + a / n)^n, whose derivative is known."""
    rate, steps = torch.tensor(0.7, requires_grad=True), 6
    found = flowed(lambda x, t: -rate * x, torch.ones(1, 1), sigmas_of(steps)).sum()
    assert found.item() == pytest.approx((1 + 0.7 / steps) ** steps, abs=1e-6)
    expected = (1 + 0.7 / steps) ** (steps - 1)
    assert torch.autograd.grad(found, rate)[0].item() == pytest.approx(expected, abs=1e-6)
