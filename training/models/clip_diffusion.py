"""VEDiT: the latents of unseen clips of a video, by steps from noise, given those of seen ones (arXiv 2410.03478).

Two streams, observed clips and noisy targets, have weights of their own and one attention over all their tokens. What
the paper leaves open (width, blocks, what rotary positions turn) is chosen here.
Shapes: B videos, O observed and N wanted clips of L tokens with d numbers each, D width, H heads, T tokens of a stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from granary.training.losses.flow_matching import flowed
from granary.training.models.positions import ROTARY_BASE, rotate

EPS = 1e-6
PERIOD = 10_000.0  # longest wavelength of the encoding of time, over 2 pi


@dataclass(frozen=True)
class ClipDiffusionConfig:
    """Size of a ClipDiffusion.

    Args:
        dimension: d of the latents.
        width: D, a multiple of 4 heads.
        blocks: how many.
        heads: of the attention.
        mlp_ratio: of hidden units to width.
        rotary: whether attention knows positions; without them clips are a set.
    """

    dimension: int
    width: int = 64
    blocks: int = 4
    heads: int = 4
    mlp_ratio: float = 4.0
    rotary: bool = True


class Conditions(nn.Module):
    """Time as a vector: sines and cosines of it, then an MLP: (B,) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Encode times, from 0 to 1000."""
        half = self.up.in_features // 2
        frequencies = torch.exp(-math.log(PERIOD) / half * torch.arange(half, device=time.device, dtype=torch.float32))
        angles = time.float()[:, None] * frequencies
        return self.out(F.silu(self.up(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.up.weight.dtype))))


class Stream(nn.Module):
    """One stream's share of a block: modulation by the conditions, queries, keys and values, output, MLP.

    Args:
        width: D.
        hidden: units of the MLP; 0 for a stream that is heard and not read again: it has neither output nor MLP.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, (6 if hidden else 2) * width)
        self.qkv = nn.Linear(width, 3 * width)
        if hidden:
            self.out = nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.modulation.weight)  # so that a block begins as the identity
        nn.init.zeros_(self.modulation.bias)

    def modulated(self, conditions: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of attention, then those of the MLP, each (B, 1, D); of few the first two."""
        return self.modulation(F.silu(conditions))[:, None].split(conditions.shape[1], dim=2)

    def answered(self, x: Tensor, heard: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """Return tokens (B, T, D) with what attention gave them, (B, T, D), and the MLP's answer."""
        _, _, gate, shift, scale, last = modulation
        x = x + gate * self.out(heard)
        return x + last * self.mlp(normed(x, shift, scale))

    def mlp(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens (B, T, D), normalised without weights, then scaled by 1 + scale and shifted."""
    return F.layer_norm(x, x.shape[2:], eps=EPS) * (1 + scale) + shift


class JointBlock(nn.Module):
    """Attention over the tokens of both streams at once, then an MLP for each.

    Args:
        config: its size.
        last: whether no block follows, so that the observed stream is not needed any more.
    """

    def __init__(self, config: ClipDiffusionConfig, last: bool = False) -> None:
        super().__init__()
        self.heads, self.last = config.heads, last
        hidden = int(config.mlp_ratio * config.width)
        self.observed, self.target = Stream(config.width, 0 if last else hidden), Stream(config.width, hidden)

    def forward(
        self, observed: Tensor, target: Tensor, conditions: Tensor, angles: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return both streams, (B, T, D) each; of the last block the observed one is as it came.

        Args:
            observed, target: tokens of the streams.
            conditions: (B, D).
            angles: (B, 1, T of both, D / H) turn queries and keys.
            seen: (B, 1, 1, T of both) bool, tokens that may be attended to.
        """
        tokens = ((self.observed, observed), (self.target, target))
        modulations = [stream.modulated(conditions) for stream, _ in tokens]
        parts = [
            stream.qkv(normed(x, shift, scale)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            for (stream, x), (shift, scale, *_) in zip(tokens, modulations, strict=True)
        ]
        q, k, v = torch.cat(parts, dim=3)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        seen_heard, heard = mixed.split([observed.shape[1], target.shape[1]], dim=1)
        if not self.last:
            observed = self.observed.answered(observed, seen_heard, modulations[0])
        return observed, self.target.answered(target, heard, modulations[1])


class ClipDiffusion(nn.Module):
    """The velocity of noisy clips, given observed ones and where in the video all of them are.

    Args:
        config: its size.

    Attributes:
        recompute: whether each step from noise is run again in the backward pass, for less memory.
    """

    def __init__(self, config: ClipDiffusionConfig) -> None:
        super().__init__()
        self.recompute = False
        if config.width % (4 * config.heads):
            raise ValueError(f"width: {config.width} is not a multiple of four times the {config.heads} heads")
        self.config = config
        self.observed_in = nn.Linear(config.dimension, config.width)
        self.target_in = nn.Linear(config.dimension, config.width)
        self.conditions = Conditions(config.width)
        self.blocks = nn.ModuleList(JointBlock(config, place == config.blocks - 1) for place in range(config.blocks))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.dimension)
        for layer in (self.modulation, self.out):  # the velocity begins as 0
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        noisy: Tensor,
        time: Tensor,
        observed: Tensor,
        positions: Tensor,
        observed_positions: Tensor,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return velocities (B, N, L, d).

        Args:
            noisy: (B, N, L, d).
            time: (B,) 1000 sigma.
            observed: (B, O, L, d).
            positions, observed_positions: (B, N) and (B, O) numbers of the clips in their video.
            present: (B, O) bool, which observed clips are there; by default all.
        """
        clips, length = noisy.shape[1:3]
        target, seen = self.target_in(noisy.flatten(1, 2)), self.observed_in(observed.flatten(1, 2))
        conditions = self.conditions(time)
        angles = self._angles(torch.cat([observed_positions, positions], dim=1), length)
        mask = None
        if present is not None:
            there = torch.cat([present, present.new_ones(len(present), clips)], dim=1)
            mask = there.repeat_interleave(length, dim=1)[:, None, None]
        for block in self.blocks:
            seen, target = block(seen, target, conditions, angles, mask)
        shift, scale = self.modulation(F.silu(conditions))[:, None].chunk(2, dim=2)
        return self.out(normed(target, shift, scale)).unflatten(1, (clips, length))

    def _angles(self, positions: Tensor, length: int) -> Tensor | None:
        """Return (B, 1, T, D / H): half of a head's pairs follow the clip, half the token within it."""
        if not self.config.rotary:
            return None
        quarter = self.config.width // self.config.heads // 4
        steps = torch.arange(quarter, device=positions.device, dtype=torch.float32)
        frequencies = ROTARY_BASE ** (-steps / quarter)
        clip = positions.float().repeat_interleave(length, dim=1)[:, None, :, None] * frequencies
        token = torch.arange(length, device=positions.device).repeat(positions.shape[1]).float()
        within = (token[:, None] * frequencies).expand_as(clip)
        half = torch.cat([clip, within], dim=3)
        return torch.cat([half, half], dim=3)

    def generated(
        self,
        noise: Tensor,
        sigmas: Tensor,
        observed: Tensor,
        positions: Tensor,
        observed_positions: Tensor,
        present: Tensor | None = None,
    ) -> Tensor:
        """Return the latents (B, N, L, d) that steps from noise lead to.

        Args:
            noise: (B, N, L, d), another one for each candidate.
            sigmas: of `granary.training.losses.flow_matching.sigmas_of`.
            observed, positions, observed_positions, present: see `forward`.
        """

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            known = (observed, positions, observed_positions, present)
            if not (torch.is_grad_enabled() and self.recompute):
                return self(x, time, *known)
            again = checkpoint(self.forward, x, time, *known, use_reentrant=False)
            assert isinstance(again, Tensor)
            return again

        return flowed(velocity, noise, sigmas)
