"""The estimate of x0 from each scheduler's coefficients, against what the scheduler itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from granary.curation.errors import UserError
from granary.synth.feedback.diffusion.estimates import PREDICTIONS, NoiseLevel, check_scheduler, noise_level

KINDS = [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def make(kind: Any, prediction: str) -> Any:
    clip = {"clip_sample": False} if kind in (DDPMScheduler, DDIMScheduler) else {}
    scheduler = kind(**SETTINGS, **clip, prediction_type=prediction)
    scheduler.set_timesteps(10)
    return scheduler


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_the_schedulers_own_at_every_step(kind: Any, prediction: str) -> None:
    scheduler, sample = make(kind, prediction), noise(1)
    sample = sample * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps):
        output = noise(2 + number)
        scheduler.scale_model_input(sample, t)
        found = noise_level(scheduler, t).clean(prediction, output, sample)
        if kind is DPMSolverMultistepScheduler:
            if scheduler.step_index is None:
                scheduler._init_step_index(t)
            theirs = scheduler.convert_model_output(output, sample=sample)
            sample = scheduler.step(output, t, sample).prev_sample
        else:
            step = scheduler.step(output, t, sample)
            theirs, sample = step.pred_original_sample, step.prev_sample
        torch.testing.assert_close(found, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_level_is_the_one_the_scheduler_adds_noise_at(kind: Any) -> None:
    """Clean pictures and noise through add_noise, then back with the true noise as prediction."""
    scheduler = make(kind, "epsilon")
    clean, eps = noise(1).clamp(-1, 1), noise(2)
    for t in scheduler.timesteps:
        noisy = scheduler.add_noise(clean, eps, t[None].expand(2))
        found = noise_level(scheduler, t)
        torch.testing.assert_close(found.clean("epsilon", eps, noisy), clean, atol=1e-3, rtol=1e-3)
        expected = found.scale * (found.alpha * clean + found.sigma * eps)
        torch.testing.assert_close(noisy, expected, atol=1e-3, rtol=1e-3)


def test_the_level_of_pndm_is_the_one_it_adds_noise_at() -> None:
    scheduler = PNDMScheduler(**SETTINGS, skip_prk_steps=True)
    scheduler.set_timesteps(10)
    clean, eps = noise(1), noise(2)
    for t in scheduler.timesteps:
        noisy = scheduler.add_noise(clean, eps, t[None].expand(2))
        torch.testing.assert_close(noise_level(scheduler, t).clean("epsilon", eps, noisy), clean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_estimate_of_a_flow_is_the_schedulers_own_at_every_step(shift: float) -> None:
    """With stochastic sampling the scheduler makes its next sample of its own estimate, and the noise that it adds."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(5)
    clean, eps = noise(1), noise(2)
    for t in scheduler.timesteps:
        noisy = scheduler.scale_noise(clean, t[None], eps)
        torch.testing.assert_close(noise_level(scheduler, t).clean("flow", eps - clean, noisy), clean)
    sample = eps
    for t in scheduler.timesteps:  # the exact flow is straight, and ends at the clean picture
        sample = scheduler.step(eps - clean, t, sample).prev_sample
    torch.testing.assert_close(sample, clean)


def test_a_flow_is_steered_as_its_noise_and_not_at_all_where_it_is_all_noise() -> None:
    clean, eps, gradient = noise(1), noise(2), noise(3)
    where = NoiseLevel(0.25, 0.75)
    sample = 0.25 * clean + 0.75 * eps
    found = where.clean("flow", where.steered("flow", eps - clean, gradient), sample)
    torch.testing.assert_close(found, (sample - 0.75 * (eps - 0.75 * gradient)) / 0.25)
    start = NoiseLevel(0.0, 1.0)
    assert torch.equal(start.steered("flow", eps - clean, gradient), eps - clean)


def test_symbolic_values_at_a_quarter() -> None:
    """abar = 1/4: x0 = 2 z - sqrt(3) eps and s = sqrt(3/4)."""
    quarter, z, eps = NoiseLevel(0.5, 0.75**0.5), noise(1), noise(2)
    clean = quarter.clean("epsilon", eps, z)
    torch.testing.assert_close(clean, 2 * z - 3**0.5 * eps)
    s = 0.75**0.5
    torch.testing.assert_close(quarter.mixed(clean, z), s * clean + (1 - s) * z)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_steering_is_one_change_of_epsilon_whatever_is_predicted(scale: float) -> None:
    """The same picture and noise, told as epsilon, sample or v, move to the same x0."""
    where = NoiseLevel(0.5, 0.75**0.5, scale)
    clean, eps, gradient = noise(1), noise(2), noise(3)
    sample = scale * (where.alpha * clean + where.sigma * eps)
    outputs = {"epsilon": eps, "sample": clean, "v_prediction": where.alpha * eps - where.sigma * clean}
    moved = [where.clean(kind, where.steered(kind, output, gradient), sample) for kind, output in outputs.items()]
    wanted = (sample / scale - where.sigma * (eps - where.sigma * scale * gradient)) / where.alpha
    for found in moved:
        torch.testing.assert_close(found, wanted)


def test_unknown_schedulers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"HeunDiscreteScheduler.*ddpm, ddim, dpm\+\+, euler, pndm, flow"):
        check_scheduler(HeunDiscreteScheduler())
    with pytest.raises(UserError, match="Runge-Kutta"):
        check_scheduler(PNDMScheduler())
    check_scheduler(PNDMScheduler(skip_prk_steps=True))
    with pytest.raises(UserError, match="flow_prediction"):
        check_scheduler(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True))
