"""The architecture of a model of `transformers` of any family that gives a map; read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict


@dataclass(frozen=True)
class HubConfig:
    """What `config.json` holds of such a model: its own configuration, and how pictures are prepared for it.

    Args:
        architecture: the configuration of transformers, as JSON.
        width: D, the dimension of its pooled vector and of its map.
        grid: places along a side of its map.
        img_size: pixels of the square picture.
        mean, std: of the RGB channels in 0..1.
        kind: "hub".
    """

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    architecture: str
    width: int
    grid: int
    img_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    kind: Literal["hub"] = "hub"

    def __post_init__(self) -> None:
        """Raise ValueError for numbers out of range, and for a configuration that names no family."""
        if min(self.width, self.grid, self.img_size) < 1 or min(self.std) <= 0:
            raise ValueError("width, grid, img_size and std must be above 0")
        tree = json.loads(self.architecture)
        if not isinstance(tree, dict) or not isinstance(tree.get("model_type"), str):
            raise ValueError("architecture is not a configuration of transformers: it has no model_type")

    @property
    def patch_size(self) -> int:
        """Pixels from one place of the map to the next, rounded down."""
        return max(1, self.img_size // self.grid)

    @property
    def class_token(self) -> bool:
        """Whether the output vector is more than the mean of the map: most families have a norm of their own there."""
        return True
