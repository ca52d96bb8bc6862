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
from typing import NamedTuple

import torch
from torch import Tensor

from granary.curation.errors import needs

NEEDED = 11  # numbers that `parameters` goes by
IDENTITY = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing
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


class Changes(NamedTuple):
    """What augmentation does to every picture of a batch.

    Args:
        flip, grey, solarize: (B,) bool.
        factors: (B, 4) see `factors`.
        order: (B, 4) see `orders`.
        sigma: (B,) of the blur in pixels, 0 for none.
    """

    flip: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    sigma: Tensor
    solarize: Tensor


def photometric(pixels: Tensor, draws: Tensor, options: Photometric) -> Tensor:
    """Flip, jitter colours, make grey, blur, solarize.

    Args:
        pixels: (B, 3, S, S) float in 0..1.
        draws: (B, 16) uniform in 0..1.
        options: see `Photometric`.

    Returns:
        (B, 3, S, S) in 0..1.
    """
    return changed(pixels, parameters(draws, options), options)


def parameters(draws: Tensor, options: Photometric) -> Changes:
    """Return what `photometric` does to each picture by its numbers: (B, 11) of them at least, uniform in 0..1."""
    low, high = options.sigma
    sigma = low + draws[:, SIGMA] * (high - low)
    return Changes(
        flip=draws[:, FLIP] < options.flip,
        factors=factors(draws, options),
        order=orders(draws),
        grey=draws[:, GREY] < options.grey,
        sigma=torch.where(draws[:, BLUR] < options.blur, sigma, 0),
        solarize=draws[:, SOLARIZE] < options.solarize,
    )


def changed(pixels: Tensor, changes: Changes, options: Photometric) -> Tensor:
    """Return pictures (B, 3, S, S) in 0..1 after changes; the options give the kernel of the blur and the threshold."""
    pixels = torch.where(changes.flip[:, None, None, None], pixels.flip(3), pixels)
    pixels = jittered(pixels, changes.factors, changes.order)
    pixels = _some(pixels, changes.grey, _grey)
    largest = options.sigma[1]
    pixels = _some(pixels, changes.sigma > 0, lambda x, sigma: blurred(x, sigma, largest), changes.sigma)
    return _some(pixels, changes.solarize, lambda x: torch.where(x >= options.threshold, 1 - x, x))


def factors(draws: Tensor, options: Photometric) -> Tensor:
    """Return how much colours change, (B, 4): `IDENTITY` for the pictures that drew no jitter.

    Args:
        draws: (B, 11) or more, uniform in 0..1.
        options: see `Photometric`.

    Returns:
        The factors of brightness, contrast and saturation, and the turn of the hue in radians.
    """
    strengths = ((BRIGHTNESS, options.brightness), (CONTRAST, options.contrast), (SATURATION, options.saturation))
    amounts = [(1 + (2 * draws[:, column] - 1) * strength).clamp(min=0) for column, strength in strengths]
    amounts.append((2 * draws[:, HUE] - 1) * (2 * math.pi * options.hue))
    jitter = draws[:, JITTER] < options.jitter
    return torch.where(jitter[:, None], torch.stack(amounts, dim=1), draws.new_tensor(IDENTITY))


def orders(draws: Tensor) -> Tensor:
    """Return which colour change comes at which turn, (B, 4) int64: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    places = (draws[:, ORDER] * len(ORDERS)).long().clamp(max=len(ORDERS) - 1)
    return ORDERS.to(draws.device)[places]


def jittered(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change the colours of pictures, each by its own factors in its own order.

    Args:
        pixels: (B, 3, S, S) float in 0..1.
        factors: (B, 4) see `factors`.
        order: (B, 4) see `orders`.
    """
    with needs("train"):
        from kornia import enhance
    changes: list[Callable[..., Tensor]] = [
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
        enhance.adjust_hue,
    ]
    differs = factors != factors.new_tensor(IDENTITY)
    for turn in range(4):
        for number, change in enumerate(changes):
            pixels = _some(pixels, differs[:, number] & (order[:, turn] == number), change, factors[:, number])
    return pixels


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
