"""Samplers that the work units of one process share: loaded once, lent to one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from granary.curation.errors import needs
from granary.curation.runs.run import Run
from granary.synth.feedback.diffusion.checkpoints import LOADING
from granary.synth.feedback.gaussians import ClassGaussians
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.hardness import read_gaussians
from granary.synth.feedback.recipe import Sampling

if TYPE_CHECKING:  # its module loads diffusers, which only a worker needs
    from granary.synth.feedback.sampler import Sampler


@dataclass(frozen=True)
class SamplerSpec:
    """What a work unit needs to load a sampler.

    Args:
        model: a folder of diffusers or an id of the Hub.
        classifier: see `load_classifier`.
        guidance: the classifier's feedback.
        sampling: how the diffusion model is run.
        models: fingerprint of the files of both; "" before they are loaded for the first time.
    """

    model: str
    classifier: str
    guidance: GuidanceOptions
    sampling: Sampling
    models: str = ""


_idle: dict[SamplerSpec, list[Sampler]] = {}
_pool, _accelerator = threading.Lock(), threading.Lock()


def load_sampler(spec: SamplerSpec, gaussians: ClassGaussians | None = None) -> Sampler:
    """Load a sampler; raises UserError when its models cannot be used, or `diffusers` is not installed."""
    with needs("sample"):
        from granary.synth.feedback.sampler import Sampler
    with LOADING:
        return Sampler(spec.model, spec.classifier, spec.guidance, spec.sampling, gaussians)


@contextlib.contextmanager
def borrowed(run: Run, spec: SamplerSpec) -> Iterator[Sampler]:
    """Lend a sampler to one thread: schedulers remember their step. On an accelerator one thread draws at a time.

    Raises:
        ValueError: the models are not those the run was planned with.
    """
    import torch

    shared = torch.cuda.is_available() and spec.sampling.device != "cpu"
    with _accelerator if shared else contextlib.nullcontext():
        with _pool:
            for other in [other for other in _idle if other != spec]:
                del _idle[other]  # a stage at a time: models are large
            sampler = _idle[spec].pop() if _idle.get(spec) else None
        if sampler is None:
            hardness = spec.guidance.criterion == "hardness"
            sampler = load_sampler(spec, read_gaussians(run) if hardness else None)
        if sampler.models != spec.models:
            raise ValueError("model or classifier is not the one this run was planned with: its files differ here")
        try:
            yield sampler
        finally:
            with _pool:
                _idle.setdefault(spec, []).append(sampler)
