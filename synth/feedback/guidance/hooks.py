"""Classifier feedback for any `diffusers` pipeline: a guest in its denoiser and its scheduler while it runs.

The pipeline stays as it is. A hook on the denoiser notes what it is called with; the scheduler's `step` first lets the
feedback act. With z the sample, eps the pipeline's prediction and C the criterion (Askari-Hemmat et al. 2023):

    run the denoiser again on z with the condition only, take its estimate of x0 (or the mix of x0 and z)
    decode it to a picture, G = dC / dz
    normalised rule (released):  z <- z + omega |z| G / |G|           then step with the old prediction
    score rule:                  eps <- eps - omega sigma G           then step (see `clipped_drift` for DDIM)

Norms, extrema and clips are of one sample, never of the batch, so a sample does not depend on its batch mates.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from granary.synth.feedback.diffusion.estimates import (
    clipped_drift,
    clips,
    noise_level,
    prediction_of,
    shift_kept_sample,
    takes_generator,
)
from granary.synth.feedback.diffusion.interfaces import Scheduler, StepResult, Timestep
from granary.synth.feedback.guidance.options import GuidanceOptions

__all__ = ["Feedback", "GuidanceOptions"]

Moved = tuple[Tensor, Tensor, Tensor]  # output, sample, drift of the next sample


class Call(NamedTuple):
    """What a denoiser was called with: sample, other arguments, keywords, and the keyword of the sample, or ""."""

    sample: Tensor
    rest: tuple[object, ...]
    keywords: dict[str, object]
    name: str = ""


class Feedback:
    """Feedback on one batch of n samples; `attached` puts it into a pipeline for one call.

    Args:
        options: the rule and its scale.
        denoiser, scheduler: of the pipeline.
        criterion: estimates of clean samples (n, c, h, w), as the pipeline's denoiser has them -> C, (n,).
        n: samples in the batch.
        conditional: where the conditional rows are when the denoiser is called with 2 n: "first" or "second" half.
        generators: n generators for pipelines that give their scheduler none.

    Attributes:
        trace: the criterion at each feedback step, (n,) float32 each, NaN where it was not finite.
        skipped: (n,) steps not taken because the step was not finite; taken: (n,) steps that were.
    """

    def __init__(
        self,
        options: GuidanceOptions,
        denoiser: nn.Module,
        scheduler: Scheduler,
        criterion: Callable[[Tensor], Tensor],
        n: int,
        conditional: str = "second",
        generators: list[torch.Generator] | None = None,
    ) -> None:
        self.options, self.criterion, self.n = options, criterion, n
        self.denoiser, self.scheduler = denoiser, scheduler
        self.conditional = slice(0, n) if conditional == "first" else slice(n, 2 * n)
        self.generators = generators
        self.trace: list[Tensor] = []
        self.skipped = torch.zeros(n, dtype=torch.int64)
        self.taken = torch.zeros(n, dtype=torch.int64)
        self._call: Call | None = None
        self._index, self._inside = 0, False

    @contextlib.contextmanager
    def attached(self) -> Iterator[Feedback]:
        """Listen to the denoiser and act in the scheduler's step until the block ends."""
        plain = self.scheduler.step
        hook = self.denoiser.register_forward_pre_hook(self._note, with_kwargs=True)
        randomness = {} if self.generators is None or not takes_generator(plain) else {"generator": self.generators}

        @functools.wraps(plain)  # pipelines look at the signature of step
        def step(output: Tensor, timestep: Timestep, sample: Tensor, **kwargs: object) -> StepResult:
            twice = len(sample) == 2 * self.n  # DiT carries its samples twice; generators are for one half
            moved = self._steered(output[: self.n], timestep, sample[: self.n])
            if twice and "generator" not in randomness:
                moved = tuple(torch.cat([part, part]) for part in moved)  # type: ignore[assignment]
            shift_kept_sample(self.scheduler, sample, moved[1])
            output, sample, drift = moved
            result = plain(output, timestep, sample, **{**randomness, **kwargs})
            return _finished(result, drift, twice and "generator" in randomness)

        self.scheduler.step = step
        try:
            yield self
        finally:
            del self.scheduler.step
            hook.remove()

    def _note(self, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        if not self._inside:
            self._call = Call(args[0], args[1:], kwargs) if args else _called_by_name(kwargs)

    def _steered(self, output: Tensor, timestep: Timestep, sample: Tensor) -> Moved:
        """Steer, where this step gets feedback."""
        index, self._index = self._index, self._index + 1
        used = self.options.omega != 0 or self.options.observe
        if not used or not self.options.acts(index, len(self.scheduler.timesteps)):
            return output, sample, torch.zeros(len(sample))
        self._inside = True  # what the denoiser is called with from here on, also by checkpoints, is ours
        moved = self.steer(output, timestep, sample)
        self._inside = False
        return moved

    def steer(self, output: Tensor, timestep: Timestep, sample: Tensor) -> Moved:
        """Return output and sample after one feedback step, and what to add to the next sample.

        With omega 0 only the trace grows.
        """
        nothing = torch.zeros(len(sample))
        if self.options.omega == 0:
            with torch.no_grad():
                self.trace.append(self.value(timestep, sample.float()).cpu())
            return output, sample, nothing
        with torch.enable_grad():
            leaf = sample.detach().float().requires_grad_()
            values = self.value(timestep, leaf)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        moved = self._moved(output, timestep, sample, gradient)
        good = values.detach().isfinite() & finite(self.options.omega * gradient)
        for part in moved:
            good &= finite(part)
        self._count(values.detach(), good)
        keep = good.view(-1, *[1] * (sample.ndim - 1))
        drift = torch.where(keep, moved[2], torch.zeros_like(moved[2]))
        return torch.where(keep, moved[0], output), torch.where(keep, moved[1], sample), drift

    def _moved(self, output: Tensor, timestep: Timestep, sample: Tensor, gradient: Tensor) -> Moved:
        """Return output, sample and drift after the rule."""
        omega, c, still = self.options.omega, sample.shape[1], torch.zeros_like(sample)
        if self.options.rule == "normalised":
            length = norms(sample.float()) / (norms(gradient) + 1e-8)
            return output, (sample.float() + omega * length * gradient).to(sample.dtype), still
        if self.options.clip is not None:
            gradient = gradient * (self.options.clip / norms(gradient).clamp(min=self.options.clip))
        mean = output[:, :c].float()  # what follows is the variance, where a denoiser predicts it too
        if clips(self.scheduler):
            drift = clipped_drift(self.scheduler, timestep, mean, sample.float(), omega * gradient)
            return output, sample, drift.to(sample.dtype)
        prediction = prediction_of(self.scheduler)
        mean = noise_level(self.scheduler, timestep).steered(prediction, mean, omega * gradient).to(output.dtype)
        return torch.cat([mean, output[:, c:]], dim=1), sample, still

    def _count(self, values: Tensor, good: Tensor) -> None:
        self.trace.append(torch.where(good, values, torch.nan).cpu())
        self.skipped += ~good.cpu()
        self.taken += good.cpu()

    def value(self, timestep: Timestep, sample: Tensor) -> Tensor:
        """Return C of what the denoiser makes out of samples (n, c, h, w) now: (n,)."""
        noise = noise_level(self.scheduler, timestep)
        output = self._predict(timestep, sample)[:, : sample.shape[1]].float()
        clean = noise.clean(prediction_of(self.scheduler), output, sample)
        return self._saving(self.criterion, noise.mixed(clean, sample) if self.options.mixes else clean)

    def _predict(self, timestep: Timestep, sample: Tensor) -> Tensor:
        """Call the denoiser as the pipeline did, with the conditional rows only."""
        assert self._call is not None, "the scheduler stepped before the denoiser was called"
        first, rest, keywords, name = self._call
        if len(first) == 2 * self.n:
            rest = tuple(map(self._half, rest))
            keywords = {key: self._half(value) for key, value in keywords.items()}

        def call(x: Tensor) -> Tensor:
            flows = prediction_of(self.scheduler) == "flow"
            inputs = (x if flows else self.scheduler.scale_model_input(x, timestep)).to(first.dtype)
            if name:
                return self.denoiser(**{name: inputs}, **keywords)[0]
            return self.denoiser(inputs, *rest, **keywords)[0]

        return self._saving(call, sample)

    def _half(self, value: object) -> object:
        """Take the conditional half of every tensor that has 2 n rows."""
        if isinstance(value, Tensor) and value.ndim and len(value) == 2 * self.n:
            return value[self.conditional]
        if isinstance(value, dict):
            return {key: self._half(part) for key, part in value.items()}
        return tuple(map(self._half, value)) if isinstance(value, list | tuple) else value

    def _saving(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Call a function, keeping no activations when checkpoints are wanted and its models set none of their own."""
        checkpointed = getattr(self.denoiser, "is_gradient_checkpointing", False)
        if self.options.checkpoint and torch.is_grad_enabled() and not checkpointed:
            return checkpoint(function, x, use_reentrant=False)
        return function(x)


def _called_by_name(keywords: dict[str, object]) -> Call:
    """Return the call of a transformer, whose sample is a keyword."""
    sample = keywords["hidden_states"]
    assert isinstance(sample, Tensor)
    rest = {key: value for key, value in keywords.items() if key != "hidden_states"}
    return Call(sample, (), rest, "hidden_states")


def norms(x: Tensor) -> Tensor:
    """Return the Euclidean length of each sample of (n, c, h, w), or of another number of axes: (n, 1, 1, 1)."""
    lengths = x.flatten(1).double().norm(dim=1).float()  # in double: squares of 1e20 overflow in float
    return lengths.view(-1, *[1] * (x.ndim - 1))


def finite(x: Tensor) -> Tensor:
    """Return whether each sample is finite: (n,) bool."""
    return x.flatten(1).isfinite().all(dim=1)


def pictures(x: Tensor, rescale: str) -> Tensor:
    """Bring pictures about -1..1 to 0..1: "minmax" by the extrema of each (held constant), "clamp" by cutting."""
    x = x.float() / 2 + 0.5
    if rescale == "clamp":
        return x.clamp(0, 1)
    low, high = x.detach().flatten(1).aminmax(dim=1)
    return (x - low.view(-1, 1, 1, 1)) / (high - low).clamp(min=1e-8).view(-1, 1, 1, 1)


def _finished(result: StepResult, drift: Tensor, double: bool) -> StepResult:
    """Return a scheduler's output, its next sample moved where it drifts, all its samples twice where asked for."""
    if isinstance(result, tuple):
        return tuple(_moved(result, drift, double))
    for key, value in zip(list(result), _moved(result.values(), drift, double), strict=True):
        result[key] = value
    return result


def _moved(values: Iterable[Tensor], drift: Tensor, double: bool) -> list[Tensor]:
    first, *rest = values  # prev_sample is the first
    moved = [first + drift if drift.any() else first, *rest]
    return [torch.cat([value, value]) if double else value for value in moved]
