"""The architecture of a ResNet, as a recipe and the config.json of a model say it; read without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

SIZES: dict[str, dict[str, object]] = {  # He et al. 2015, table 1; thin: a quarter of the widths of 18
    "resnet18-thin": {"widths": (16, 32, 64, 128), "depths": (2, 2, 2, 2), "block": "basic"},
    "resnet18": {"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "block": "basic"},
    "resnet34": {"widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "block": "basic"},
    "resnet50": {"widths": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3), "block": "bottleneck"},
}
STRIDES = {"small": 1, "half": 2, "imagenet": 4}  # of the stems
REDUCTION = 4  # outputs of a bottleneck block for each channel of its 3 x 3 convolution


@dataclass(frozen=True)
class ResNetConfig:
    """What `config.json` holds: the architecture, and how pictures are prepared for it.

    Args:
        img_size: pixels of the square picture.
        widths: channels after each stage.
        depths: blocks of each stage; every stage but the first halves the map.
        block: "basic", two 3 x 3 convolutions, or "bottleneck", 1 x 1, 3 x 3, 1 x 1.
        stem: "small", 3 x 3 of stride 1, "half", 3 x 3 of stride 2, or "imagenet", 7 x 7 of stride 2 and a pooling of
            stride 2.
        stem_width: channels after the stem; None: as wide as the 3 x 3 convolutions of the first stage.
        last_width: D, channels of the very last block alone (arXiv 2304.05369); None: those of its stage.
        zero_gamma: whether the last norm of a block starts at 0, so that the block starts as the identity.
        mean, std: of the RGB channels in 0..1.
        kind: "resnet".
    """

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    img_size: int = 224
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["small", "half", "imagenet"] = "imagenet"
    stem_width: int | None = None
    last_width: int | None = None
    zero_gamma: bool = False
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    kind: Literal["resnet"] = "resnet"

    def __post_init__(self) -> None:
        """Raise ValueError for numbers out of range, and for sizes that do not fit together."""
        if len(self.widths) != len(self.depths) or not self.widths:
            raise ValueError(
                f"widths are {list(self.widths)} and depths {list(self.depths)}; give one of each for every stage"
            )
        numbers = (self.img_size, *self.widths, *self.depths, self.stem_width or 1, self.last_width or 1)
        if min(numbers) < 1 or min(self.std) <= 0:
            raise ValueError("img_size, widths, depths, stem_width, last_width and std must be above 0")
        if self.block not in ("basic", "bottleneck") or self.stem not in STRIDES:
            raise ValueError(f"block '{self.block}' or stem '{self.stem}' is unknown")
        if self.block == "bottleneck" and any(width % REDUCTION for width in self.widths):
            raise ValueError(f"widths are {list(self.widths)}; those of bottleneck blocks must be multiples of 4")

    @classmethod
    def named(cls, size: str, **changes: object) -> ResNetConfig:
        """Return a size of the field, "resnet18" to "resnet50", with changed fields."""
        return cls(**{**SIZES[size], **changes})  # type: ignore[arg-type]

    @property
    def width(self) -> int:
        """D, the dimension of the output vector."""
        return self.last_width or self.widths[-1]

    @property
    def stem_channels(self) -> int:
        """Channels after the stem."""
        return self.stem_width or self.widths[0] // (REDUCTION if self.block == "bottleneck" else 1)

    @property
    def patch_size(self) -> int:
        """Pixels from one place of the output map to the next."""
        return STRIDES[self.stem] * 2 ** (len(self.widths) - 1)

    @property
    def grid(self) -> int:
        """Places along a side of the output map."""
        return math.ceil(self.img_size / self.patch_size)

    @property
    def class_token(self) -> bool:
        """Whether the output vector is more than the mean of the map; it is not."""
        return False
