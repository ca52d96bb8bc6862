"""The architecture of a Vision Transformer, as a recipe and the config.json of a model say it; read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

SIZES = {  # width, blocks, heads; DINOv2's S to g
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
}
POS_EMBEDS, MLPS = ("learned", "sincos", "rotary"), ("gelu", "quick_gelu", "swiglu")
STEMS = ("patch", "conv")
FORMER = {  # names of fields in version 0.1, in recipes and in config.json
    "side": "img_size",
    "patch": "patch_size",
    "hidden": "mlp_ratio",
    "positions": "pos_embed",
    "deviation": "std",
}


@dataclass(frozen=True)
class ViTConfig:
    """What `config.json` holds: the architecture, and how pictures are prepared for it.

    Args:
        img_size: pixels of the square picture.
        patch_size: pixels of a patch.
        width, depth, heads: D, number of blocks, H.
        mlp_ratio: width of the MLP as a multiple of D (SwiGLU uses two thirds of it).
        class_token: whether there is one.
        registers: R.
        pos_embed: "learned", "sincos" or "rotary".
        mlp: "gelu", "quick_gelu" or "swiglu".
        layer_scale: initial value, 0 for none.
        drop_path: share of the pictures that skip a branch in training.
        mask_token: whether `masked` may be used.
        stem: "patch", one linear layer for each patch, or "conv", convolutions (arXiv 2106.14881) in its place: a token
            has then seen pixels of the patches around its own, masked ones among them.
        patch_bias, pre_norm, norm_eps, antialias: as CLIP and `transformers` differ.
        mean, std: of the RGB channels in 0..1.
        kind: "vit".
    """

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    img_size: int = 224
    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    class_token: bool = True
    registers: int = 0
    pos_embed: str = "learned"
    mlp: str = "gelu"
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    mask_token: bool = False
    stem: str = "patch"
    patch_bias: bool = True
    pre_norm: bool = False
    norm_eps: float = 1e-6
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    kind: Literal["vit"] = "vit"

    def __post_init__(self) -> None:
        """Raise ValueError for numbers out of range, and for sizes that do not fit together."""
        if self.depth < 1 or self.registers < 0:
            raise ValueError(f"depth is {self.depth} and registers {self.registers}; at least 1 and 0 are right")
        if self.mlp_ratio <= 0 or self.norm_eps <= 0 or min(self.std) <= 0 or self.layer_scale < 0:
            raise ValueError("mlp_ratio, norm_eps and std must be above 0, layer_scale at least 0")
        if self.img_size < 1 or self.patch_size < 1 or self.img_size % self.patch_size:
            raise ValueError(f"img_size is {self.img_size}; it must be a multiple of patch_size, {self.patch_size}")
        if self.heads < 1 or self.width % self.heads or self.width % 4:
            raise ValueError(f"width is {self.width}; it must be a multiple of 4 and of heads, {self.heads}")
        if self.pos_embed not in POS_EMBEDS or self.mlp not in MLPS or self.stem not in STEMS:
            raise ValueError(f"pos_embed '{self.pos_embed}', mlp '{self.mlp}' or stem '{self.stem}' is unknown")
        if self.stem == "conv" and (self.patch_size == 1 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(f"patch_size is {self.patch_size}; stem conv needs it to be a power of 2, at least 2")
        if self.pos_embed == "rotary" and self.width // self.heads % 4:
            raise ValueError(f"width / heads is {self.width // self.heads}; rotary needs it to be a multiple of 4")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path}; it must be at least 0 and below 1")

    @classmethod
    def named(cls, size: str, **changes: object) -> ViTConfig:
        """Return a size of the field, "tiny" to "giant", with changed fields."""
        width, depth, heads = SIZES[size]
        return cls(**{"width": width, "depth": depth, "heads": heads, **changes})  # type: ignore[arg-type]

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        hidden = int(self.mlp_ratio * self.width)
        return swiglu_width(hidden) if self.mlp == "swiglu" else hidden

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.img_size // self.patch_size


def swiglu_width(hidden: int) -> int:
    """Return the width of a gated MLP with as many weights as one of `hidden`: two thirds, rounded up to 8."""
    return (hidden * 2 // 3 + 7) // 8 * 8
