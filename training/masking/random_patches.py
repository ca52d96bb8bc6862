"""Random masks of one picture: patches (MAE, arXiv 2111.06377) or square blocks of them (SimMIM, arXiv 2111.09886)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def draw_random_mask(grid: int, ratio: float, generator: np.random.Generator, block: int = 1) -> NDArray[np.bool_]:
    """Return a mask (grid * grid,), true where a patch is masked; every mask has as many.

    Args:
        grid: patches along a side.
        ratio: share of the blocks that are masked, rounded up to a whole number of them.
        generator: of this picture.
        block: patches along the side of a block; it divides grid.
    """
    side = grid // block
    mask = np.zeros(side * side, bool)
    mask[generator.permutation(side * side)[: masked_count(side * side, ratio)]] = True
    return mask.reshape(side, side).repeat(block, axis=0).repeat(block, axis=1).ravel()


def masked_count(patches: int, ratio: float) -> int:
    """Return how many of some patches are masked: their share, rounded up."""
    return math.ceil(round(patches * ratio, 9))  # 0.07 * 100 is 7.000000000000001
