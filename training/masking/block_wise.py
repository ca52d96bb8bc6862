"""Block-wise masks: of one picture (BEiT), or of some crops of a batch, each with a share of its own (iBOT, DINOv2).

Zhou et al. 2022 (arXiv 2111.07832), after BEiT (arXiv 2106.08254); shares stratified as in DINOv2 (arXiv 2304.07193).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

TRIES = 10  # blocks proposed before a mask is left as it is
SMALLEST = 4  # patches of a block of iBOT and DINOv2
ASPECT = 0.3  # to 1 / 0.3, height to width


def draw_block_masks(
    crops: int,
    grid: int,
    share: float,
    ratio: tuple[float, float],
    generator: np.random.Generator,
    smallest: int = SMALLEST,
) -> NDArray[np.bool_]:
    """Return masks (crops, grid * grid), true where a patch is masked.

    Args:
        crops: of the batch; exactly floor(crops * share) of them, at random places, get a mask.
        grid: patches along a side.
        share: of crops that are masked.
        ratio: least and largest share of patches; it is cut into as many equal intervals as there are masks, and each
            mask draws its own share from its interval.
        generator: of this step.
        smallest: patches of a block, before it is rounded to whole rows and columns.
    """
    masked, patches = math.floor(crops * share), grid * grid
    masks = np.zeros((crops, patches), bool)
    edges = np.linspace(*ratio, masked + 1)
    for mask, (low, high) in zip(masks[:masked], pairwise(edges), strict=True):
        fill_blocks(mask.reshape(grid, grid), math.floor(patches * generator.uniform(low, high)), generator, smallest)
    return generator.permutation(masks, axis=0)


def draw_block_mask(grid: int, count: int, smallest: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return a mask of one picture (grid * grid,) with exactly `count` patches: blocks, then single ones to fill it up.

    BEiT (arXiv 2106.08254, algorithm 1) leaves a mask as it is where no more blocks fit.

    Args:
        grid: patches along a side.
        count: of masked patches.
        smallest: patches of a block, before it is rounded to whole rows and columns.
        generator: of this picture.
    """
    mask = np.zeros((grid, grid), bool)
    fill_blocks(mask, count, generator, smallest)
    free = np.flatnonzero(~mask)
    mask.ravel()[generator.permutation(free)[: count - int(mask.sum())]] = True
    return mask.ravel()


def fill_blocks(mask: NDArray[np.bool_], count: int, generator: np.random.Generator, smallest: int = SMALLEST) -> None:
    """Add blocks to a mask (grid, grid) until `count` patches are masked or ten proposals in a row do not fit."""
    left = count - int(mask.sum())
    while left > 0:
        added = _add_block(mask, left, generator, smallest)
        if not added:
            return
        left -= added


def _add_block(mask: NDArray[np.bool_], left: int, generator: np.random.Generator, smallest: int) -> int:
    """Add a block that masks 1 to `left` further patches; returns how many, 0 where none of the proposals does."""
    grid, largest = len(mask), min(left, mask.size / 2)
    for size, shape, down, across in generator.random((TRIES, 4)).tolist():
        area, aspect = smallest + size * (largest - smallest), ASPECT ** (1 - 2 * shape)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid or width >= grid:
            continue
        top, start = int(down * (grid - height + 1)), int(across * (grid - width + 1))
        block = mask[top : top + height, start : start + width]
        added = block.size - int(block.sum())
        if 1 <= added <= left:
            block[:] = True
            return added
    return 0
