"""A small class-conditional diffusion model of one's own pictures, in the layout of `diffusers`.

DDPM (Ho et al. 2020, arXiv 2006.11239) in pixels with a UNet2DModel, the class as an embedding that is left out for a
tenth of the training pictures (Ho and Salimans 2022, arXiv 2207.12598), and a moving average of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

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
from granary.synth.feedback.diffusion.interfaces import Scheduler
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline

Labels = Sequence[int] | NDArray[np.int64]
Report = Callable[[int, float], None]  # told step and recent loss


@dataclass(frozen=True)
class GeneratorFit:
    """How a generator is made and trained.

    Args:
        steps: of Adam; a warm-up over 5% of them, then cosine decay of the rate.
        seed: decides weights, batches and noise.
        size: pixels of the square pictures made, a multiple of 2^(len(channels) - 1); default: of the images.
        channels: of each level of the UNet, multiples of 16.
        layers: residual blocks in a level.
        batch: pictures in a step.
        lr: largest learning rate.
        ema_decay: of the moving average of the weights, which is what is saved.
        class_dropout: share of the pictures shown without their class, for classifier-free guidance.
        timesteps: noise levels.
        prediction: epsilon, sample or v_prediction.
        device: auto, cpu, cuda or cuda:N.
    """

    steps: int = 2000
    seed: int = 0
    size: int | None = None
    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    batch: int = 64
    lr: float = 2e-3
    ema_decay: float = 0.995
    class_dropout: float = 0.1
    timesteps: int = 1000
    prediction: str = "epsilon"
    device: str = "auto"


class Trained(TypedDict):
    """What came of a training; losses are means of the first 20 and of the last 100 steps."""

    steps: int
    first_loss: float
    loss: float
    parameters: int
    size: int
    classes: list[str]


def train_generator(
    images: NDArray[np.uint8],
    labels: Labels,
    classes: Sequence[str],
    out: str,
    options: GeneratorFit | None = None,
    report: Report | None = None,
) -> Trained:
    """Train a class-conditional model and save it as a `ClassConditionalPipeline`.

    Args:
        images: (n, h, w), (n, h, w, 1) or (n, h, w, 3) uint8.
        labels: (n,) numbers of classes.
        classes: their names.
        out: folder to write.
        options: how.
        report: called about a hundred times.

    Raises:
        UserError: pictures, labels or sizes that do not fit.
    """
    options = options or GeneratorFit()
    channels = options.channels
    pictures, targets = prepare(images, labels, classes, options.size, 2 ** (len(channels) - 1))
    if any(width < 16 or width % 16 for width in channels):
        raise UserError(f"generator: channels are {channels}; each must be a multiple of 16")
    noising = DDPMScheduler(num_train_timesteps=options.timesteps, prediction_type=options.prediction)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        unet = small_unet(pictures.shape[1], pictures.shape[2], channels, options.layers, len(classes))
        torch.nn.Module.to(unet, torch_device(options.device))  # the method of diffusers has no types
        losses = _fit(unet, noising, _batches(pictures, targets, len(classes), options), options, report)
    _save(unet, noising, classes, out)
    return Trained(
        steps=options.steps,
        first_loss=float(np.mean(losses[:20])),
        loss=float(np.mean(losses[-100:])),
        parameters=sum(p.numel() for p in unet.parameters()),
        size=pictures.shape[2],
        classes=list(classes),
    )


def _fit(
    unet: UNet2DModel,
    noising: DDPMScheduler,
    batches: Iterator[tuple[Tensor, Tensor]],
    options: GeneratorFit,
    report: Report | None,
) -> list[float]:
    """Train in place, leave the averaged weights in the network and return the losses."""
    optimizer = torch.optim.Adam(unet.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, max(options.steps, 2), pct_start=0.05)
    average = EMAModel(unet.parameters(), decay=options.ema_decay, use_ema_warmup=True, power=0.75)
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
        if report and step % max(1, options.steps // 100) == 0:
            report(step, float(np.mean(losses[-100:])))
    average.copy_to(unet.parameters())
    return losses


def _save(unet: UNet2DModel, noising: DDPMScheduler, classes: Sequence[str], out: str) -> None:
    # DDIM steps what DDPM trained; clipping estimates to -1..1 is right for pixels
    scheduler = cast(Scheduler, DDIMScheduler.from_config(noising.config, timestep_spacing="trailing"))
    names = {str(number): str(name) for number, name in enumerate(classes)}
    ClassConditionalPipeline(unet.eval(), scheduler, names).save_pretrained(out, safe_serialization=True)


def prepare(
    images: NDArray[np.uint8], labels: Labels, classes: Sequence[str], size: int | None, multiple: int
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


def denoising_loss(unet: UNet2DModel, noising: DDPMScheduler, clean: Tensor, classes: Tensor) -> Tensor:
    """Return the mean squared error of the prediction at random noise levels.

    Args:
        clean: (B, c, h, w).
        classes: (B,).
    """
    noise = torch.randn(clean.shape).to(clean.device)
    t = torch.randint(0, len(noising.alphas_cumprod), (len(clean),)).to(clean.device)
    times = cast(torch.IntTensor, t)
    targets = {"epsilon": noise, "sample": clean, "v_prediction": noising.get_velocity(clean, noise, times)}
    output = unet(noising.add_noise(clean, noise, times), t, class_labels=classes).sample
    return F.mse_loss(output, targets[noising.config["prediction_type"]])


def _batches(x: Tensor, y: Tensor, nothing: int, options: GeneratorFit) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a batch for each step, each epoch in a new order, some of their classes replaced by `nothing`."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(options.steps):
        while len(order) < options.batch:
            order = torch.cat([order, torch.randperm(len(x))])
        chosen, order = order[: options.batch], order[options.batch :]
        yield x[chosen], torch.where(torch.rand(options.batch) < options.class_dropout, nothing, y[chosen])
