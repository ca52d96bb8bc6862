"""How each family of `diffusers` pipelines is called, and how its samples become pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from granary.curation.encoders.inference import workable
from granary.curation.errors import UserError
from granary.synth.feedback.diffusion.estimates import FLOW, SCHEDULERS
from granary.synth.feedback.diffusion.interfaces import Pipeline
from granary.synth.feedback.requests import Request

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

Keywords = dict[str, object]  # of a call of a pipeline
Arguments = Callable[[Pipeline, Sequence[Request], float], Keywords]


@dataclass(frozen=True)
class Family:
    """A family of pipelines.

    denoiser: the name of its denoising network; conditional: the half of the denoiser's batch with the condition, under
    classifier-free guidance; arguments: (pipeline, requests, image dropout) -> keywords of a call; guided: it knows
    classifier-free guidance; needs: what a request must have: "label", "prompt", "condition"; schedulers: the classes
    of schedulers it can use.
    """

    denoiser: str
    conditional: str
    arguments: Arguments
    guided: bool = True
    needs: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = tuple(kind for kind in SCHEDULERS.values() if kind != FLOW)


def _prompts(pipe: Pipeline, requests: Sequence[Request], dropout: float) -> Keywords:
    return {"prompt": [request.prompt for request in requests]}


def _prompts_and_images(pipe: Pipeline, requests: Sequence[Request], dropout: float) -> Keywords:
    return {**_prompts(pipe, requests, dropout), "image_embeds": image_embeds(pipe, requests, dropout)}


def _labels(pipe: Pipeline, requests: Sequence[Request], dropout: float) -> Keywords:
    return {"class_labels": [request.label for request in requests]}


def _labels_if_any(pipe: Pipeline, requests: Sequence[Request], dropout: float) -> Keywords:
    return _labels(pipe, requests, dropout) if class_names(pipe) else _count(pipe, requests, dropout)


def _count(pipe: Pipeline, requests: Sequence[Request], dropout: float) -> Keywords:
    return {"batch_size": len(requests)}


# DDPMPipeline and DDIMPipeline neither scale the first noise nor the denoiser's input, as Euler's samples need
UNSCALED = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler")
FAMILIES = {
    "StableDiffusionPipeline": Family("unet", "second", _prompts, needs=("prompt",)),
    "StableDiffusionXLPipeline": Family("unet", "second", _prompts, needs=("prompt",)),
    "StableDiffusion3Pipeline": Family("transformer", "second", _prompts, needs=("prompt",), schedulers=(FLOW,)),
    "FluxPipeline": Family("transformer", "second", _prompts, needs=("prompt",), schedulers=(FLOW,)),
    "StableUnCLIPImg2ImgPipeline": Family("unet", "second", _prompts_and_images, needs=("prompt", "condition")),
    "DiTPipeline": Family("transformer", "first", _labels, needs=("label",)),
    "DDPMPipeline": Family("unet", "second", _count, guided=False, schedulers=UNSCALED),
    "DDIMPipeline": Family("unet", "second", _count, guided=False, schedulers=("DDIMScheduler",)),
    "ClassConditionalPipeline": Family("unet", "second", _labels_if_any),
}


def family_of(pipe: Pipeline) -> Family:
    """Return the family of a pipeline."""
    return FAMILIES[type(pipe).__name__]


def class_names(pipe: Pipeline) -> list[str] | None:
    """Return the names of the classes a pipeline takes, in their order; None where it takes none."""
    if type(pipe).__name__ == "DiTPipeline":
        return dit_classes(pipe.labels)
    return getattr(pipe, "classes", None)


def dit_classes(labels: dict[str, int]) -> list[str] | None:
    """Return a name for each label id of a DiT: its synonyms, joined as ImageNet's are."""
    if not labels:
        return None
    synonyms: list[list[str]] = [[] for _ in range(max(labels.values()) + 1)]
    for name, number in labels.items():
        synonyms[number].append(name)
    return [", ".join(names) for names in synonyms]


def decoder(pipe: Pipeline) -> Callable[[Tensor], Tensor]:
    """Return the differentiable map from a pipeline's samples to pictures (n, 3, H, W), about -1..1."""
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return lambda x: x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
    unpack = unpacked if type(pipe).__name__ == "FluxPipeline" else torch.nn.Identity()
    scale, shift = _latent_scale(vae)
    return lambda z: vae.decode((unpack(z) * scale.to(z) + shift.to(z)).to(vae.dtype), return_dict=False)[0]


def unpacked(z: Tensor) -> Tensor:
    """Return latents (n, c, 2 s, 2 s) of a Flux, whose samples are rows of patches of 2 x 2, (n, s s, 4 c)."""
    n, patches, width = z.shape
    side = math.isqrt(patches)
    squares = z.view(n, side, side, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, width // 4, 2 * side, 2 * side)


def _latent_scale(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Return what a model's latents are multiplied by before they are decoded, and what is added, broadcastable."""
    config = vae.config
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        mean, deviation = [config.get("shift_factor") or 0.0], [1.0]
    scale = torch.tensor(deviation) / config["scaling_factor"]
    return scale.view(1, -1, 1, 1), torch.tensor(mean).view(1, -1, 1, 1)


def image_embeds(pipe: Pipeline, requests: Sequence[Request], dropout: float) -> Tensor:
    """Return the CLIP embeddings of the conditioning pictures after dropout: (n, d).

    Each entry is set to 0 with probability `dropout`, by a generator of the request's own, and the others are divided
    by 1 - dropout, as torch's dropout does: the embedding is right in the mean. (Its length grows by about
    1 / sqrt(1 - dropout); without the division it would shrink by as much.) Dropout 1 leaves the prompt alone.
    """
    if any(request.condition is None for request in requests):
        raise UserError("condition: an image-conditioned model needs a real picture for every sample")
    pictures = [workable(request.condition) for request in requests if request.condition is not None]
    pixels = pipe.feature_extractor(images=pictures, return_tensors="pt").pixel_values
    encoder = pipe.image_encoder
    with torch.no_grad():
        embeds = encoder(pixels.to(encoder.device, encoder.dtype)).image_embeds
    kept = torch.stack([_kept(request.seed, embeds.shape[1], dropout) for request in requests])
    return embeds * (kept / max(1 - dropout, 1e-12)).to(embeds)


def _kept(seed: int, size: int, dropout: float) -> Tensor:
    """Return (size,) ones and zeros, from a stream of its own beside the noise."""
    seed_of_dropout = int.from_bytes(hashlib.sha256(f"image dropout {seed}".encode()).digest()[:8], "big") >> 1
    return (torch.rand(size, generator=torch.Generator().manual_seed(seed_of_dropout)) >= dropout).float()
