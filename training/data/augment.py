"""Photometric augmentation of a batch on its device, each picture by its own numbers.

Every random choice is one of the 16 uniform numbers that a view brings with it from its sample's generator, so the
result of a picture does not depend on the others of the batch, on the device or on the number of workers. kornia's
functions do the pixels, since they take a factor for each picture; its random modules would draw for the whole batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from granary.curation.errors import needs

FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GREY, BLUR, SIGMA, SOLARIZE = range(11)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4)


@dataclass(frozen=True)
class Photometric:
    """Chances and strengths, as DINOv2 names them (arXiv 2304.07193).

    Args:
        flip, jitter, grey, blur, solarize: chances.
        brightness, contrast, saturation: strengths s; a factor is uniform in 1 - s .. 1 + s.
        hue: strength s; the turn is uniform in -s .. s.
        sigma: least and largest blur in pixels.
        threshold: 0..1; solarize inverts what is above it.
    """

    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    threshold: float = 128 / 255


def to_unit(pixels: Tensor) -> Tensor:
    """Return (B, S, S, 3) uint8 pictures as (B, 3, S, S) float32 in 0..1."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return pictures in 0..1 less the mean, divided by the standard deviation of each channel."""
    shape = (1, 3, 1, 1)
    return (pixels - pixels.new_tensor(mean).view(shape)) / pixels.new_tensor(std).view(shape)


def photometric(pixels: Tensor, draws: Tensor, options: Photometric) -> Tensor:
    """Flip, jitter colours, make grey, blur, solarize.

    Args:
        pixels: (B, 3, S, S) float in 0..1.
        draws: (B, 16) uniform in 0..1.
        options: see `Photometric`.

    Returns:
        (B, 3, S, S) in 0..1.
    """
    pixels = torch.where((draws[:, FLIP] < options.flip)[:, None, None, None], pixels.flip(3), pixels)
    pixels = _jittered(pixels, draws, options)
    pixels = _some(pixels, draws[:, GREY] < options.grey, _grey)
    low, high = options.sigma
    sigma = low + draws[:, SIGMA] * (high - low)
    pixels = _some(pixels, draws[:, BLUR] < options.blur, lambda x, s: blurred(x, s, high), sigma)
    return _some(pixels, draws[:, SOLARIZE] < options.solarize, lambda x: torch.where(x >= options.threshold, 1 - x, x))


def _some(pixels: Tensor, chosen: Tensor, change: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """Return pictures where the chosen ones (B,) are changed.

    Args:
        numbers: (B,) each, handed to `change`.
    """
    places = chosen.nonzero()[:, 0]
    if not len(places):
        return pixels
    changed = change(pixels[places], *(number[places] for number in numbers))
    return pixels.index_copy(0, places, changed.to(pixels.dtype))


def _grey(pixels: Tensor) -> Tensor:
    with needs("train"):
        from kornia.color import rgb_to_grayscale
    return rgb_to_grayscale(pixels).expand_as(pixels)


def blurred(pixels: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each picture by a Gaussian of its own sigma (B,); the kernel spans four of the largest sigma, mirrored."""
    with needs("train"):
        from kornia.filters import gaussian_blur2d
    side = min(2 * math.ceil(2 * largest) + 1, 2 * ((min(pixels.shape[2:]) - 1) // 2) + 1)
    return gaussian_blur2d(pixels, (side, side), sigma[:, None].expand(-1, 2), "reflect")


def _jittered(pixels: Tensor, draws: Tensor, options: Photometric) -> Tensor:
    """Apply the four colour changes to the pictures that drew them, in each picture's own order."""
    with needs("train"):
        from kornia import enhance
    strengths = (options.brightness, options.contrast, options.saturation, options.hue)
    changes: list[tuple[Callable[..., Tensor], Tensor]] = [
        (enhance.adjust_brightness_accumulative, _factor(draws, BRIGHTNESS, options.brightness)),
        (enhance.adjust_contrast_with_mean_subtraction, _factor(draws, CONTRAST, options.contrast)),
        (enhance.adjust_saturation_with_gray_subtraction, _factor(draws, SATURATION, options.saturation)),
        (enhance.adjust_hue, (2 * draws[:, HUE] - 1) * (2 * math.pi * options.hue)),
    ]
    jitter = draws[:, JITTER] < options.jitter
    orders = ORDERS.to(draws.device)[(draws[:, ORDER] * len(ORDERS)).long().clamp(max=len(ORDERS) - 1)]  # (B, 4)
    for turn in range(4):
        for number, (change, amount) in enumerate(changes):
            if strengths[number]:
                pixels = _some(pixels, jitter & (orders[:, turn] == number), change, amount)
    return pixels


def _factor(draws: Tensor, column: int, strength: float) -> Tensor:
    """Return (B,) factors uniform in 1 - strength .. 1 + strength, not below 0."""
    return (1 + (2 * draws[:, column] - 1) * strength).clamp(min=0)
