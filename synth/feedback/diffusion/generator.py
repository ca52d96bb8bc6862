"""A small class-conditional diffusion model of one's own pictures, in the layout of `diffusers`.

DDPM (Ho et al. 2020, arXiv 2006.11239) in pixels with a UNet2DModel, the class as an embedding that is left out for a
tenth of the training pictures (Ho and Salimans 2022, arXiv 2207.12598), and a moving average of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline

__all__ = ["ClassConditionalPipeline", "train_generator"]

Report = Callable[[int, float], None]


def train_generator(
    images: NDArray[np.uint8],
    labels: Sequence[int] | NDArray[np.int64],
    classes: Sequence[str],
    out: str,
    *,
    steps: int = 2000,
    seed: int = 0,
    size: int | None = None,
    channels: Sequence[int] = (32, 64),
    layers: int = 1,
    batch: int = 64,
    rate: float = 2e-3,
    decay: float = 0.995,
    dropped: float = 0.1,
    levels: int = 1000,
    prediction: str = "epsilon",
    device: str = "auto",
    report: Report | None = None,
) -> dict[str, Any]:
    """Train a class-conditional model and save it as a `ClassConditionalPipeline`.

    Args:
        images: (n, h, w), (n, h, w, 1) or (n, h, w, 3) uint8.
        labels: (n,) numbers of classes.
        classes: their names.
        out: folder to write.
        steps, batch, rate: of Adam; a warm-up over 5% of the steps, then cosine decay of the rate.
        seed: decides weights, batches and noise.
        size: pixels of the square pictures made, a multiple of 2^(len(channels) - 1); default: of the images.
        channels: of each level of the UNet, multiples of 16; layers: residual blocks in a level.
        decay: of the moving average of the weights, which is what is saved.
        dropped: share of the training pictures shown without their class, for classifier-free guidance.
        levels: noise levels; prediction: epsilon, sample or v_prediction.
        device: auto, cpu, cuda or cuda:N.
        report: called with step and recent loss about a hundred times.

    Returns:
        {"steps", "first_loss", "loss", "parameters", "size", "classes"}; losses are means of 20 and of 100 steps.

    Raises:
        UserError: pictures, labels or sizes that do not fit.
    """
    pictures, targets = prepare(images, labels, classes, size, 2 ** (len(channels) - 1))
    if any(width < 16 or width % 16 for width in channels):
        raise UserError(f"generator: channels are {tuple(channels)}; each must be a multiple of 16")
    where = torch_device(device)
    noising = DDPMScheduler(num_train_timesteps=levels, prediction_type=prediction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = small_unet(pictures.shape[1], pictures.shape[2], channels, layers, len(classes))
        unet.to(where)
        batches = _batches(pictures, targets, steps, batch, dropped, len(classes))
        losses = _fit(unet, noising, batches, steps, rate, decay, report)
    # DDIM steps what DDPM trained; clipping estimates to -1..1 is right for pixels
    sampling = DDIMScheduler.from_config(noising.config, timestep_spacing="trailing")
    names = {str(number): str(name) for number, name in enumerate(classes)}
    ClassConditionalPipeline(unet.eval(), sampling, names).save_pretrained(out, safe_serialization=True)
    return {
        "steps": steps,
        "first_loss": float(np.mean(losses[:20])),
        "loss": float(np.mean(losses[-100:])),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "size": pictures.shape[2],
        "classes": list(classes),
    }


def _fit(
    unet: Any,
    noising: Any,
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    decay: float,
    report: Report | None,
) -> list[float]:
    """Train in place, leave the averaged weights in the network and return the losses."""
    optimizer = torch.optim.Adam(unet.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(steps, 2), pct_start=0.05)
    average = EMAModel(unet.parameters(), decay=decay, use_ema_warmup=True, power=0.75)
    losses: list[float] = []
    for step, (clean, classes) in enumerate(batches):
        loss = denoising_loss(unet, noising, clean.to(unet.device), classes.to(unet.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(unet.parameters())
        losses.append(float(loss.detach()))
        if report and step % max(1, steps // 100) == 0:
            report(step, float(np.mean(losses[-100:])))
    average.copy_to(unet.parameters())
    return losses


def prepare(
    images: NDArray[np.uint8], labels: Any, classes: Sequence[str], size: int | None, multiple: int
) -> tuple[Tensor, Tensor]:
    """Return pictures (n, c, size, size) float32 in -1..1 and targets (n,) int64; raises UserError when they misfit."""
    pixels = np.asarray(images)
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    targets = torch.as_tensor(np.asarray(labels)).long()
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or pixels.shape[3] not in (1, 3) or not len(pixels):
        raise UserError(f"generator: images are {pixels.shape} {pixels.dtype}; give (n, h, w, 1 or 3) uint8")
    if len(targets) != len(pixels) or int(targets.min()) < 0 or int(targets.max()) >= len(classes):
        raise UserError(f"generator: labels must be {len(pixels)} numbers from 0 to {len(classes) - 1}")
    side = size or max(pixels.shape[1:3])
    if side % multiple or side < 8:
        raise UserError(f"generator: size is {side}; it must be a multiple of {multiple} and at least 8")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    return x, targets


def small_unet(inputs: int, size: int, channels: Sequence[int], layers: int, classes: int) -> UNet2DModel:
    """Return a UNet with attention in its lowest level and one more class embedding than classes."""
    lower = len(channels) - 1
    return UNet2DModel(
        sample_size=size,
        in_channels=inputs,
        out_channels=inputs,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=("DownBlock2D",) * lower + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * lower,
        norm_num_groups=8,
        attention_head_dim=16,
        num_class_embeds=classes + 1,
    )


def denoising_loss(unet: Any, noising: Any, clean: Tensor, classes: Tensor) -> Tensor:
    """Return the mean squared error of the prediction at random noise levels. clean: (B, c, h, w); classes: (B,)."""
    noise = torch.randn(clean.shape).to(clean.device)
    t = torch.randint(0, noising.config.num_train_timesteps, (len(clean),)).to(clean.device)
    noisy, kind = noising.add_noise(clean, noise, t), noising.config.prediction_type
    wanted = noising.get_velocity(clean, noise, t) if kind == "v_prediction" else clean if kind == "sample" else noise
    return F.mse_loss(unet(noisy, t, class_labels=classes).sample, wanted)


def _batches(
    x: Tensor, y: Tensor, steps: int, batch: int, dropped: float, nothing: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `steps` batches, each epoch in a new order, some of their classes replaced by `nothing`."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(x))])
        chosen, order = order[:batch], order[batch:]
        yield x[chosen], torch.where(torch.rand(batch) < dropped, nothing, y[chosen])
