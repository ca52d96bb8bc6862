"""What is used of diffusers, as far as sampling under feedback goes; its own classes all have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, device

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel

Timestep = Tensor | float
StepResult = tuple[Tensor, ...] | MutableMapping[str, Tensor]  # the next sample comes first


class SchedulerConfig(Protocol):
    """How a scheduler was made; the fields about clipping are those of DDIM, `skip_prk_steps` is PNDM's."""

    prediction_type: str
    num_train_timesteps: int
    skip_prk_steps: bool
    clip_sample: bool
    clip_sample_range: float
    thresholding: bool


class Scheduler(Protocol):
    """A noise schedule and the steps through it.

    Attributes:
        alphas_cumprod, final_alpha_cumprod, num_inference_steps: of DDPM and DDIM.
        sigmas, step_index: of DPM-Solver++, Euler and flows, which also have `index_for_timestep`.
        counter, cur_sample: of PNDM.
    """

    config: SchedulerConfig
    timesteps: Tensor
    step: Callable[..., StepResult]
    alphas_cumprod: Tensor
    final_alpha_cumprod: Tensor
    num_inference_steps: int
    sigmas: Tensor
    step_index: int | None
    counter: int
    cur_sample: Tensor | None

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the steps of a run."""

    def scale_model_input(self, sample: Tensor, timestep: Timestep) -> Tensor:
        """Return what the denoiser is to be shown of a sample."""
        ...

    def index_for_timestep(self, timestep: Timestep) -> int:
        """Return the place of a timestep in the schedule."""
        ...


class PipelineOutput(Protocol):
    """What a pipeline returns: images (n, h, w, c) in 0..1 for `output_type="np"`."""

    images: NDArray[np.float32]


class Pipeline(Protocol):
    """A diffusion pipeline; its networks are in `components` and are its attributes too.

    Attributes:
        labels: number of each class name, of DiT.
        feature_extractor, image_encoder: of image-conditioned ones.
    """

    scheduler: Scheduler
    labels: dict[str, int]
    feature_extractor: Callable[..., BatchFeature]
    image_encoder: PreTrainedModel

    @property
    def components(self) -> Mapping[str, object]:
        """Networks, scheduler and preprocessing by name."""
        ...

    def __call__(self, **keywords: object) -> PipelineOutput:
        """Draw pictures."""
        ...

    def set_progress_bar_config(self, *, disable: bool) -> None:
        """Show a bar for the steps of a run, or none."""

    def to(self, device: device) -> Pipeline:
        """Return the pipeline on a device."""
        ...
