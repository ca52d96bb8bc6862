"""A Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) with the parts its descendants added.

Register tokens (Darcet et al. 2023), LayerScale (Touvron et al. 2021), stochastic depth (Huang et al. 2016), SwiGLU
(Shazeer 2020), learned, sine-cosine or rotary positions that follow the picture's size, dropped and masked tokens.

Shapes: B pictures, N patches, K kept patches, R registers, D width, H heads, T tokens. Tokens are ordered class,
registers, patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from granary.training.models.backbone import Backbone, Tokens
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.convolutions import conv_stem
from granary.training.models.positions import interpolated, rotary_angles, rotate, sincos_positions
from granary.training.models.vit_config import ViTConfig, swiglu_width

FEW = 96  # tokens that attention on a CPU is written out for, see `attend`


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v; q: (B, H, Q, d), k, v: (B, H, T, d). Few tokens on a CPU go without the fused kernel.

    That kernel does not gain from a second thread there, its backward pass least of all; with one they are equal.
    """
    if k.device.type == "cpu" and k.shape[2] <= FEW:
        return (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor | None = None, first: int = 0) -> Tensor:
        """Attend the tokens from number `first` on to all.

        Args:
            angles: (B or 1, 1, T, D / H) turn queries and keys.
        """
        q, k, v = self._projected(x, angles)
        return self.out(attend(q[:, :, first:], k, v).transpose(1, 2).flatten(2))

    def probabilities(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """Return how much each token attends to each, rows that sum to 1: (B, T, D) -> (B, H, T, T).

        Args:
            x: the tokens.
            angles: (B or 1, 1, T, D / H) turn queries and keys.
        """
        q, k, _ = self._projected(x, angles)
        return (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3)

    def _projected(self, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, T, D / H)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v


class MLP(nn.Module):
    """Linear, GELU (or its quick approximation x sigmoid(1.702 x)), linear."""

    def __init__(self, width: int, hidden: int, quick: bool = False) -> None:
        super().__init__()
        self.quick = quick
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.up(x)
        return self.down(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class SwiGLU(nn.Module):
    """A gated MLP with as many weights as an MLP of `hidden`: its width is two thirds, rounded up to 8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        gated = swiglu_width(hidden)
        self.up = nn.Linear(width, 2 * gated)
        self.down = nn.Linear(gated, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return x * self.scale


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); in training each branch skips a share of the pictures."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        self.drop_path = config.drop_path
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attention = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = SwiGLU(width, hidden) if config.mlp == "swiglu" else MLP(width, hidden, config.mlp == "quick_gelu")
        scaled = config.layer_scale > 0
        self.scale1 = LayerScale(width, config.layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(width, config.layer_scale) if scaled else nn.Identity()

    def forward(self, x: Tensor, angles: Tensor | None = None, first: int = 0) -> Tensor:
        """(B, T, D) -> (B, T - first, D): the tokens from number `first` on, where the others are not needed."""
        x = self._add(x, lambda part, turn: self.scale1(self.attention(self.norm1(part), turn, first)), angles, first)
        return self._add(x, lambda part, _: self.scale2(self.mlp(self.norm2(part))))

    def _add(
        self, x: Tensor, branch: Callable[[Tensor, Tensor | None], Tensor], angles: Tensor | None = None, first: int = 0
    ) -> Tensor:
        """Add a branch; with stochastic depth on a random part of the pictures, scaled up by its share."""
        if not self.training or not self.drop_path:
            return x[:, first:] + branch(x, angles)
        kept = max(1, round(len(x) * (1 - self.drop_path)))
        chosen = torch.randperm(len(x), device=x.device)[:kept]
        turn = angles[chosen] if angles is not None and len(angles) > 1 else angles
        added = branch(x[chosen], turn).to(x.dtype)
        return x[:, first:].index_add(0, chosen, added, alpha=len(x) / kept)


def gather_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens of x (B, N, D) at indices (B, K): (B, K, D)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[2]))


class VisionTransformer(Backbone):
    """The encoder: (B, 3, h, w) normalised pictures, h and w multiples of the patch -> `Tokens`."""

    Config = ViTConfig
    STAGES = "blocks"
    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        patch = config.patch_size
        if config.stem == "conv":
            self.embed: nn.Module = conv_stem(config.width, patch, config.patch_bias)
        else:
            self.embed = nn.Conv2d(3, config.width, patch, stride=patch, bias=config.patch_bias)
        first = torch.empty(1, int(config.class_token), config.width), torch.empty(1, config.registers, config.width)
        self.cls, self.registers = (nn.Parameter(tokens, requires_grad=tokens.numel() > 0) for tokens in first)
        if config.mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        if config.pos_embed != "rotary":
            positions = sincos_positions(config.grid, config.grid, config.width)[None]
            self.positions = nn.Parameter(positions, requires_grad=config.pos_embed == "learned")
        self.pre_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights but a stem's from a truncated normal of deviation 0.02 with torch's generator; biases are 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("embed."):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        learned = [self.positions] if self.config.pos_embed == "learned" else []
        for parameter in [self.cls, self.registers, *learned]:
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, pixels: Tensor, keep: Tensor | None = None, masked: Tensor | None = None) -> Tokens:
        """Return the tokens of the last block.

        Args:
            pixels: (B, 3, h, w).
            keep: (B, K) int64, numbers of the patches that go through the blocks; None keeps all. A convolutional stem
                runs over the whole picture, and what it gives for the others is dropped.
            masked: (B, N) bool, patches replaced by the mask token before positions are added.
        """
        return self.intermediate(pixels, [len(self.blocks) - 1], keep, masked)[0]

    def intermediate(
        self,
        pixels: Tensor,
        layers: Sequence[int],
        keep: Tensor | None = None,
        masked: Tensor | None = None,
        normed: bool = True,
    ) -> list[Tokens]:
        """Return the tokens after each of `layers` (block numbers from 0, ascending), each through the final norm.

        Args:
            pixels: (B, 3, h, w).
            layers: which.
            keep, masked: as in `forward`.
            normed: false leaves the norm out.
        """
        x, outputs = self.tokens(pixels, keep, masked), []
        angles = self._angles(pixels, keep)
        for number, block in enumerate(self.blocks):
            x = checkpoint(block, x, angles, use_reentrant=False) if self.recompute else block(x, angles)
            if number in layers:
                outputs.append(self.split(self.norm(x) if normed else x))
        return outputs

    def tokens(self, pixels: Tensor, keep: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Embed patches, mask, add positions, drop; put class token and registers before them: (B, T, D)."""
        config = self.config
        x = self.embed(pixels).flatten(2).transpose(1, 2) if keep is None else self._embed_some(pixels, keep)
        if masked is not None:
            masked = masked if keep is None else masked.gather(1, keep)
            x = torch.where(masked[..., None], self.mask_token.to(x.dtype), x)
        if config.pos_embed != "rotary":
            rows, columns = (size // config.patch_size for size in pixels.shape[2:])
            positions = interpolated(self.positions, config.grid, rows, columns, config.antialias)
            x = x + (positions if keep is None else gather_tokens(positions.expand(len(keep), -1, -1), keep))
        first = torch.cat([self.cls, self.registers], dim=1).expand(len(x), -1, -1)
        return self.pre_norm(torch.cat([first.to(x.dtype), x], dim=1))

    def _embed_some(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """Embed only the patches that are kept: (B, K, D)."""
        if not isinstance(self.embed, nn.Conv2d):
            return gather_tokens(self.embed(pixels).flatten(2).transpose(1, 2), keep)
        patch = self.config.patch_size
        patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, patch, patch)
        flat = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, N, 3 * patch * patch)
        return F.linear(gather_tokens(flat, keep), self.embed.weight.flatten(1), self.embed.bias)

    def _angles(self, pixels: Tensor, keep: Tensor | None) -> Tensor | None:
        """Return rotary angles (B or 1, 1, T, D / H), 0 for class token and registers; None for other positions."""
        config = self.config
        if config.pos_embed != "rotary":
            return None
        rows, columns = (size // config.patch_size for size in pixels.shape[2:])
        angles = rotary_angles(config.grid, rows, columns, config.width // config.heads).to(pixels.device)[None]
        if keep is not None:
            angles = gather_tokens(angles.expand(len(keep), -1, -1), keep)
        return F.pad(angles, (0, 0, int(config.class_token) + config.registers, 0))[:, None]

    def split(self, x: Tensor) -> Tokens:
        """Return tokens (B, T, D) by what they are."""
        first = int(self.config.class_token)
        second = first + self.config.registers
        patches = x[:, second:]
        return Tokens(x[:, 0] if first else patches.mean(dim=1), x[:, first:second], patches)

    @classmethod
    def check_sizes(cls, config: BackboneConfig, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError where the numbers that decide how much memory a model takes are not those of its weights.

        Args:
            config: what config.json says.
            state: the weights by name.
        """
        assert isinstance(config, ViTConfig)
        blocks = sum(name.endswith(".norm1.weight") for name in state)
        halvings = sum(name.startswith("embed.") and name.endswith(".0.weight") for name in state)
        patch = 2**halvings if config.stem == "conv" else state["embed.weight"].shape[2]
        there = {"depth": blocks, "width": len(state["norm.weight"]), "patch_size": patch}
        if "positions" in state:
            there["grid"] = math.isqrt(state["positions"].shape[1])
        if blocks:
            there["hidden width"] = state["blocks.0.mlp.down.weight"].shape[1]
        stated = {**asdict(config), "grid": config.grid, "hidden width": config.hidden}
        wrong = next((name for name, number in there.items() if stated[name] != number), None)
        if wrong:
            raise ValueError(f"config.json says that {wrong} is {stated[wrong]}, that of the weights is {there[wrong]}")
