"""A diffusion model of pictures that is told a vector: RCDM (Bordes et al. 2021, arXiv 2112.09164), by diffusers.

The vector, through a linear layer, is added to the embedding of the noise step, which scales and shifts the groups of
every block. Shapes: B pictures of S x S pixels, C numbers of a vector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from granary.curation.errors import needs

if TYPE_CHECKING:  # in an extra
    from diffusers.models.unets.unet_2d import UNet2DModel

NOISE = (1e-4, 0.02)  # first and last variance that a step of 1000 adds, linear between them (Ho et al. 2020)
HEAD = 64  # channels of an attention head, at most
GROUPS = 32


class ConditionedUNet(nn.Module):
    """Noisy pictures, their noise steps, vectors -> the noise.

    Args:
        size: S, a multiple of 2 to the number of `multipliers` less one.
        condition: C.
        channels: of the first level.
        multipliers: of the channels at each level; sides halve from one to the next.
        attention: sides at which pixels attend to each other.
        blocks: of each level.
        steps: from a picture to noise.
    """

    def __init__(
        self,
        size: int,
        condition: int,
        channels: int = 256,
        multipliers: Sequence[int] = (1, 1, 2, 3, 4),
        attention: Sequence[int] = (32, 16, 8),
        blocks: int = 2,
        steps: int = 1000,
    ) -> None:
        super().__init__()
        self.size, self.steps = size, steps
        self.unet = _unet(size, channels, multipliers, attention, blocks)
        self.told = nn.Linear(condition, 4 * channels)
        scale = 1000 / steps
        kept = 1 - torch.linspace(NOISE[0] * scale, NOISE[1] * scale, steps, dtype=torch.float64).clamp(max=0.999)
        self.register_buffer("signal", kept.cumprod(dim=0).float())  # share of the picture's variance after each step
        self.signal: Tensor

    def forward(self, noisy: Tensor, steps: Tensor, vectors: Tensor) -> Tensor:
        """Return the noise in pictures: (B, 3, S, S), (B,) int64, (B, C) -> (B, 3, S, S)."""
        noise: Tensor = self.unet(noisy, steps, class_labels=self.told(vectors)).sample
        return noise

    def noised(self, pictures: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return pictures in -1..1 after so many steps: sqrt(signal) x + sqrt(1 - signal) noise, (B, 3, S, S)."""
        signal = self.signal[steps][:, None, None, None].to(pictures.dtype)
        return signal.sqrt() * pictures + (1 - signal).sqrt() * noise

    @torch.no_grad()
    def drawn(self, vectors: Tensor, noise: Tensor, count: int) -> Tensor:
        """Return the pictures that noise becomes, by DDIM without further noise (Song et al. 2020, arXiv 2010.02502).

        Args:
            vectors: (B, C).
            noise: (B, 3, S, S).
            count: of steps, evenly over all, of which there are as many or more.

        Returns:
            (B, 3, S, S) in 0..1.
        """
        places = [self.steps - 1 - round(number * self.steps / count) for number in range(count)]
        x = noise
        for place, after in itertools.pairwise([*places, -1]):
            predicted = self(x, torch.full((len(x),), place, device=x.device), vectors)
            signal = self.signal[place]
            picture = ((x - (1 - signal).sqrt() * predicted) / signal.sqrt()).clamp(-1, 1)
            left = (x - signal.sqrt() * picture) / (1 - signal).sqrt()  # the noise that this picture leaves
            later = self.signal[after] if after >= 0 else torch.ones_like(signal)
            x = later.sqrt() * picture + (1 - later).sqrt() * left
        return x.add(1).div(2).clamp(0, 1)


def _unet(size: int, channels: int, multipliers: Sequence[int], attention: Sequence[int], blocks: int) -> UNet2DModel:
    """Return the network of diffusers, whose classes are vectors of 4 `channels`."""
    with needs("sample"):
        from diffusers.models.unets.unet_2d import UNet2DModel
    widths = tuple(channels * number for number in multipliers)
    attends = [size >> level in attention for level in range(len(widths))]
    network: Any = UNet2DModel(
        sample_size=size,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if there else "DownBlock2D" for there in attends),
        up_block_types=tuple("AttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attends)),
        layers_per_block=blocks,
        attention_head_dim=math.gcd(HEAD, *widths),
        norm_num_groups=math.gcd(GROUPS, *widths),
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    unet: UNet2DModel = network
    return unet
