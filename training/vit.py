"""A Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929) with the parts its descendants added.

Register tokens (Darcet et al. 2023), LayerScale (Touvron et al. 2021), SwiGLU (Shazeer 2020), sine-cosine or learned
positions that are interpolated to the picture's size.

Shapes: B pictures, N patches, R registers, D width, H heads. Tokens are ordered class, registers, patches.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from curation import storage

SIZES = {  # width, blocks, heads; DINOv2's S to g
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
}


@dataclass(frozen=True)
class ViTConfig:
    """What `config.json` holds: the architecture, and how pictures are prepared for it.

    side: pixels of the square picture; patch: pixels of a patch; width, depth, heads: D, blocks, H; hidden: width of
    the MLP as a multiple of D (SwiGLU uses two thirds of it); registers: R; positions: "sincos" or "learned";
    mlp: "gelu" or "swiglu"; layer_scale: initial value, 0 for none; mean, deviation: of the RGB channels in 0..1.
    """

    side: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: float = 4.0
    registers: int = 0
    positions: str = "learned"
    mlp: str = "gelu"
    layer_scale: float = 1e-5
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
        if self.side % self.patch:
            raise ValueError(f"side is {self.side}; it must be a multiple of patch, {self.patch}")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4 and of heads, {self.heads}")
        if self.positions not in ("learned", "sincos") or self.mlp not in ("gelu", "swiglu"):
            raise ValueError(f"positions '{self.positions}' or mlp '{self.mlp}' is unknown")

    @classmethod
    def named(cls, size: str, **changes: object) -> ViTConfig:
        """Return a size of the field, "tiny" to "giant", with changed fields."""
        width, depth, heads = SIZES[size]
        return cls(**{"width": width, "depth": depth, "heads": heads, **changes})  # type: ignore[arg-type]


class Tokens(NamedTuple):
    """The output: class token (B, D), registers (B, R, D), patches (B, N, D), all after the final norm."""

    cls: Tensor
    registers: Tensor
    patches: Tensor


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend every token to every token."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(F.gelu(self.up(x)))


class SwiGLU(nn.Module):
    """A gated MLP with as many weights as an MLP of `hidden`: its width is two thirds, rounded up to 8."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        gated = (hidden * 2 // 3 + 7) // 8 * 8
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
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.hidden * config.width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, config.heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width, hidden) if config.mlp == "swiglu" else MLP(width, hidden)
        scaled = config.layer_scale > 0
        self.scale1 = LayerScale(width, config.layer_scale) if scaled else nn.Identity()
        self.scale2 = LayerScale(width, config.layer_scale) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return fixed 2-D positions (rows * columns, width): sine and cosine of y, then of x, at width / 4 frequencies."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (y, x)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


class VisionTransformer(nn.Module):
    """The encoder: (B, 3, h, w) normalised pictures, h and w multiples of the patch -> `Tokens`."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.side // config.patch
        self.embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.cls = nn.Parameter(torch.empty(1, 1, config.width))
        self.registers = nn.Parameter(torch.empty(1, config.registers, config.width))
        positions = sincos_positions(grid, grid, config.width)[None]
        self.positions = nn.Parameter(positions, requires_grad=config.positions == "learned")
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights from a truncated normal of deviation 0.02 with torch's generator; biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        learned = [self.positions] if self.config.positions == "learned" else []
        for parameter in [self.cls, self.registers, *learned]:
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, pixels: Tensor) -> Tokens:
        """Return the tokens of the last block."""
        return self.intermediate(pixels, [len(self.blocks) - 1])[0]

    def intermediate(self, pixels: Tensor, layers: list[int]) -> list[Tokens]:
        """Return the tokens after each of `layers` (block numbers from 0, ascending), each through the final norm."""
        x, outputs = self.tokens(pixels), []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in layers:
                outputs.append(self._split(self.norm(x)))
        return outputs

    def tokens(self, pixels: Tensor) -> Tensor:
        """Embed patches, add positions, put class token and registers before them: (B, 1 + R + N, D)."""
        patches = self.embed(pixels)  # (B, D, rows, columns)
        x = patches.flatten(2).transpose(1, 2) + self._positions(patches.shape[2], patches.shape[3])
        first = torch.cat([self.cls, self.registers], dim=1).expand(len(x), -1, -1)
        return torch.cat([first, x], dim=1)

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return positions for a grid, interpolated when it is not the grid of `side`: (1, rows * columns, D)."""
        grid = self.config.side // self.config.patch
        if (rows, columns) == (grid, grid):
            return self.positions
        plane = self.positions.unflatten(1, (grid, grid)).permute(0, 3, 1, 2).float()
        plane = F.interpolate(plane, (rows, columns), mode="bicubic", antialias=True)
        return plane.flatten(2).transpose(1, 2).to(self.positions.dtype)

    def _split(self, x: Tensor) -> Tokens:
        first = 1 + self.config.registers
        return Tokens(x[:, 0], x[:, 1:first], x[:, first:])

    def save(self, folder: str) -> None:
        """Write config.json and model.safetensors into a folder (any fsspec URL)."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        storage.write_bytes(storage.join(folder, "model.safetensors"), save(weights))
        text = json.dumps(asdict(self.config), indent=2)
        storage.write_bytes(storage.join(folder, "config.json"), text.encode())

    @classmethod
    def load(cls, folder: str, device: str | torch.device = "cpu") -> VisionTransformer:
        """Read what `save` wrote; raises OSError, ValueError, TypeError or RuntimeError when it is no such folder."""
        fields = json.loads(storage.read_bytes(storage.join(folder, "config.json")))
        pairs = {name: tuple(fields[name]) for name in ("mean", "deviation") if name in fields}
        model = cls(ViTConfig(**{**fields, **pairs}))
        model.load_state_dict(load(storage.read_bytes(storage.join(folder, "model.safetensors"))))
        return model.to(device)
