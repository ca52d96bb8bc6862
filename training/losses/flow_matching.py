"""Flow matching along straight lines from noise to data (Lipman et al. 2023, arXiv 2210.02747; rectified flow).

A point of the line is x = (1 - sigma) data + sigma noise, its velocity noise - data; a network is told the time
1000 sigma, as by diffusers' FlowMatchEulerDiscreteScheduler. Shapes: B samples, any further axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TIMES = 1000  # of sigma 1
Velocity = Callable[[Tensor, Tensor], Tensor]  # (points (B, ...), times (B,)) -> (B, ...)


def sigmas_of(steps: int, shift: float = 1.0) -> Tensor:
    """Return the noise levels of a number of equal steps from 1 to 0, (steps + 1,) float64.

    Args:
        steps: of the way; each level but the last is `shift` sigma / (1 + (shift - 1) sigma).
        shift: above 1 more steps are at high noise.
    """
    levels = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * levels / (1 + (shift - 1) * levels)


def noised(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the points of the lines at levels sigma (B,): (B, ...)."""
    level = sigma.to(data.dtype).reshape(-1, *(1,) * (data.ndim - 1))
    return (1 - level) * data + level * noise


def flow_loss(velocity: Velocity, data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean squared error of predicted velocities.

    Args:
        velocity: the network.
        data, noise: (B, ...).
        sigma: (B,) levels, 0 to 1.
    """
    return F.mse_loss(velocity(noised(data, noise, sigma), TIMES * sigma), noise - data)


def flowed(velocity: Velocity, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Return the data that Euler steps lead to from noise, with the gradient of all steps.

    Args:
        velocity: the network.
        noise: (B, ...).
        sigmas: (steps + 1,), falling, of `sigmas_of`.
    """
    x, levels = noise, sigmas.tolist()
    for level, following in itertools.pairwise(levels):
        x = x + (following - level) * velocity(x, torch.full((len(x),), TIMES * level, device=x.device, dtype=x.dtype))
    return x
