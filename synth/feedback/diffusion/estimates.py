"""The clean picture a denoiser predicts, from the coefficients of the scheduler in use.

Every scheduler's sample is `scale (alpha x0 + sigma eps)` with alpha^2 + sigma^2 = 1: scale is 1 for the
variance-preserving ones (DDPM, DDIM, DPM-Solver++, PNDM) and 1 / alpha for Euler, whose samples grow with the noise.
Flow matching (Lipman et al. 2023) has alpha = 1 - sigma and scale 1. With z = sample / scale, a denoiser that predicts

    epsilon   x0 = (z - sigma output) / alpha
    sample    x0 = output
    v         x0 = alpha z - sigma output          (Salimans and Ho 2022)
    flow      x0 = z - sigma output                (output is eps - x0)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from granary.curation.errors import UserError
from granary.synth.feedback.diffusion.interfaces import Scheduler, Timestep

SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler"}
SCHEDULERS |= {"euler": "EulerDiscreteScheduler", "pndm": "PNDMScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}
FLOW = SCHEDULERS["flow"]
PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class NoiseLevel:
    """A noise level: sample = scale (alpha x0 + sigma eps)."""

    alpha: float
    sigma: float
    scale: float = 1.0

    def clean(self, prediction: str, output: Tensor, sample: Tensor) -> Tensor:
        """Return the estimate of x0 for a denoiser's output.

        Args:
            prediction: one of `PREDICTIONS`, or flow.
            output: of the denoiser.
            sample: that it was given.
        """
        if prediction == "sample":
            return output
        z = sample / self.scale
        if prediction == "flow":
            return z - self.sigma * output
        if prediction == "v_prediction":
            return self.alpha * z - self.sigma * output
        return (z - self.sigma * output) / self.alpha

    def mixed(self, clean: Tensor, sample: Tensor) -> Tensor:
        """Return s x0 + (1 - s) z with s = sigma: what the released sampler shows the classifier."""
        return self.sigma * clean + (1 - self.sigma) * sample / self.scale

    def steered(self, prediction: str, output: Tensor, gradient: Tensor) -> Tensor:
        """Return the output whose epsilon is smaller by sigma times `gradient`, so that the score gains it.

        The score of z is -eps / sigma and dC/dz = scale * gradient. The same change of epsilon is one of -sigma / alpha
        in x0 and one of 1 / alpha in v and in a flow. Where alpha is 0 the sample is its noise, and there is nothing
        to steer.

        Args:
            prediction: what the output is: epsilon, sample, v_prediction or flow.
            output: of the denoiser.
            gradient: of the criterion in the sample, like the output.
        """
        if self.alpha == 0:
            return output
        shift = -self.sigma * self.scale * gradient
        if prediction == "sample":
            return output - shift * (self.sigma / self.alpha)
        return output + (shift if prediction == "epsilon" else shift / self.alpha)


def noise_level(scheduler: Scheduler, timestep: Timestep) -> NoiseLevel:
    """Return the noise level at one of `scheduler.timesteps`, before the scheduler's step."""
    name = type(scheduler).__name__
    if name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"):
        abar = float(scheduler.alphas_cumprod[int(timestep)])
        return NoiseLevel(abar**0.5, (1 - abar) ** 0.5)
    index = scheduler.step_index
    ratio = float(scheduler.sigmas[scheduler.index_for_timestep(timestep) if index is None else index])  # sigma / alpha
    if name == FLOW:  # its sigmas are sigma itself
        return NoiseLevel(1 - ratio, ratio)
    alpha = (ratio**2 + 1) ** -0.5
    return NoiseLevel(alpha, ratio * alpha, 1 / alpha if name == "EulerDiscreteScheduler" else 1.0)


def prediction_of(scheduler: Scheduler) -> str:
    """Return what a denoiser predicts: one of `PREDICTIONS`, or flow."""
    return "flow" if type(scheduler).__name__ == FLOW else scheduler.config.prediction_type


def shift_kept_sample(scheduler: Scheduler, before: Tensor, after: Tensor) -> None:
    """Move the sample that PNDM keeps as its step's own was moved: its second step goes from the kept one."""
    if type(scheduler).__name__ == "PNDMScheduler" and scheduler.counter == 1 and scheduler.cur_sample is not None:
        scheduler.cur_sample = scheduler.cur_sample + (after - before)


def clips(scheduler: Scheduler) -> bool:
    """Return whether a scheduler cuts its estimate of x0 and yet steps with the uncut epsilon, as DDIM's may."""
    config = scheduler.config
    return type(scheduler).__name__ == "DDIMScheduler" and bool(config.clip_sample or config.thresholding)


def clipped_drift(scheduler: Scheduler, timestep: Timestep, output: Tensor, sample: Tensor, gradient: Tensor) -> Tensor:
    """Return what the score's gain adds to the next sample of a DDIM that clips.

    Its step is prev = alpha' clip(x0) + sigma' eps. Told a smaller epsilon, a clipped x0 would stay and the step would
    go against the gradient; so the gain moves x0 = clip(x0 + sigma^2 gradient / alpha), epsilon follows x0, and the
    next sample moves by (alpha' - sigma' alpha / sigma) times the change of x0. Without a clip both are the same.
    """
    here, prediction = noise_level(scheduler, timestep), scheduler.config.prediction_type
    before = int(timestep) - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    abar = float(scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod)
    clean = here.clean(prediction, output, sample)
    change = clipped(scheduler, clean + here.sigma**2 / here.alpha * gradient) - clipped(scheduler, clean)
    return (abar**0.5 - (1 - abar) ** 0.5 * here.alpha / here.sigma) * change


def clipped(scheduler: Scheduler, clean: Tensor) -> Tensor:
    """Cut an estimate as the scheduler does."""
    if scheduler.config.thresholding:
        threshold: Callable[[Tensor], Tensor] = getattr(scheduler, "_threshold_sample")  # noqa: B009 (of DDIM alone)
        return threshold(clean)
    return clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)


def takes_generator(step: Callable[..., object]) -> bool:
    """Return whether a scheduler's step draws noise."""
    return "generator" in inspect.signature(step).parameters


def check_scheduler(scheduler: Scheduler) -> None:
    """Raise UserError for a scheduler whose coefficients are not known here."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in SCHEDULERS.values():
        raise UserError(f"scheduler: the model's is {name}, which guidance does not know; set {', '.join(SCHEDULERS)}")
    if name == FLOW:
        return
    if name == "PNDMScheduler" and not config.skip_prk_steps:
        raise UserError("scheduler: the model's PNDM begins with Runge-Kutta steps; write pndm to begin without")
    if config.prediction_type not in PREDICTIONS or getattr(config, "use_flow_sigmas", False):
        raise UserError(f"scheduler: prediction_type is '{config.prediction_type}'; known: {', '.join(PREDICTIONS)}")
