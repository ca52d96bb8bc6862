"""A pipeline of `diffusers` for pixel-space UNets, with classes or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from granary.synth.feedback.diffusion.estimates import takes_generator
from granary.synth.feedback.diffusion.interfaces import Scheduler

Pictures = list[Image.Image] | NDArray[np.float32] | Tensor


class ClassConditionalPipeline(DiffusionPipeline):
    """Pictures from a UNet2DModel, of given classes or, for a model without classes, of any kind.

    Args:
        unet: with k classes it has k + 1 class embeddings, the last for "no class".
        scheduler: any of diffusers' with set_timesteps, scale_model_input and step.
        id2label: {number as text: name of the class}.
    """

    model_cpu_offload_seq = "unet"  # type: ignore[assignment]  # diffusers declares it as None

    def __init__(self, unet: UNet2DModel, scheduler: Scheduler, id2label: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=dict(id2label) if id2label else None)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in order; None for a model without."""
        names = self.config["id2label"]
        return [names[str(number)] for number in range(len(names))] if names else None

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | None = None,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Pictures]:
        """Draw pictures.

        Args:
            class_labels: (n,) numbers of classes, None for a model without.
            batch_size: n, where there are no labels.
            num_inference_steps: denoising steps.
            guidance_scale: w of classifier-free guidance, eps = eps_0 + w (eps_y - eps_0), off at 1 or below.
            generator: one, or one for each picture.
            output_type: "pil"; "np" for (n, h, w, c) float32 in 0..1; "pt" for (n, c, h, w).
            return_dict: an ImagePipelineOutput, else a tuple of the pictures.

        Raises:
            ValueError: labels for a model without classes, or none for one with.
        """
        if (class_labels is None) != (self.classes is None):
            raise ValueError("class_labels must be given exactly when the model has classes")
        n = batch_size if class_labels is None else len(class_labels)
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sample = self._noise(n, generator) * self.scheduler.init_noise_sigma
        predict = self._denoiser(class_labels, guidance_scale, device)
        stochastic = {"generator": generator} if takes_generator(self.scheduler.step) else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            output = predict(sample, t)
            sample = self.scheduler.step(output, t, sample, **stochastic).prev_sample
        pictures = self._pictures(sample, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (pictures,)
        return ImagePipelineOutput(images=pictures)  # type: ignore[arg-type]  # a tensor for "pt", as diffusers has it

    def _noise(self, n: int, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        config, device = self.unet.config, self._execution_device
        size = config["sample_size"]
        shape = (n, config["in_channels"], *(size if isinstance(size, list | tuple) else (size, size)))
        return randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)

    def _pictures(self, sample: Tensor, output_type: str) -> Pictures:
        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        pixels = images.float().cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(pixels) if output_type == "pil" else pixels

    def _denoiser(
        self, class_labels: Sequence[int] | None, scale: float, device: torch.device
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the prediction as a function of sample and time; the rows without a class come first."""
        if class_labels is None:
            return lambda x, t: self.unet(self.scheduler.scale_model_input(x, t), t).sample
        labels = torch.tensor(list(class_labels), device=device)
        if scale <= 1:
            return lambda x, t: self.unet(self.scheduler.scale_model_input(x, t), t, class_labels=labels).sample
        both = torch.cat([torch.full_like(labels, len(self.classes or [])), labels])

        def predict(x: Tensor, t: Tensor) -> Tensor:
            inputs = self.scheduler.scale_model_input(torch.cat([x, x]), t)
            without, given = self.unet(inputs, t, class_labels=both).sample.chunk(2)
            return without + scale * (given - without)

        return predict
