"""Masks of IWM (arXiv 2403.00504): the union of several blocks is predicted, all else is seen.

Unions of blocks at random places are not equally large, but the masks of a batch must be. So a size is drawn for the
whole step, and the blocks of a picture are drawn again until their union has it: no patch of a union is left out, and
the masks of a picture depend on neither batch nor process. The size is the middle one of nine, since a picture would
have to wait too long for a rare one. N is the number of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from granary.training.masking.multi_block import MultiBlock, block_size, patch_numbers, place_blocks

TRIES = 64  # unions drawn at once
SIZES = 9  # unions of which the middle one says how large all are


def union_blocks(grid: int, number: int, scale: tuple[float, float], aspect: tuple[float, float]) -> MultiBlock:
    """Return how blocks are drawn of which the union is predicted.

    Args:
        grid: patches along a side.
        number: of blocks.
        scale, aspect: least and largest share of the grid, and ratio of height to width.

    Raises:
        ValueError: a block could have no patch, or the blocks side by side could leave nothing to see.
    """
    sizes = [math.prod(block_size(u, grid, scale, aspect)) for u in np.linspace(0, 1, 1001)]
    if not min(sizes):
        raise ValueError(f"a block of the {grid} x {grid} grid can be empty; give larger ones")
    if number * max(sizes) >= grid**2:
        raise ValueError(
            f"{number} blocks of {max(sizes)} patches can cover the {grid} x {grid} grid; give fewer or smaller ones"
        )
    return MultiBlock(grid, number, scale, aspect, min_keep=0)


def draw_unions(
    blocks: MultiBlock, sizes: np.random.Generator, pictures: Sequence[np.random.Generator]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the masks of a batch.

        >>> blocks = union_blocks(14, 4, (0.15, 0.2), (0.75, 1.5))
        >>> sizes, *pictures = (np.random.default_rng(seed) for seed in range(3))
        >>> seen, predicted = draw_unions(blocks, sizes, pictures)
        >>> seen.shape[1] + predicted.shape[2], predicted.shape[:2]  # every patch; one target of two pictures
        (196, (1, 2))

    Args:
        blocks: of `union_blocks`.
        sizes: draws how large blocks and unions are, for all pictures: the same on every process.
        pictures: B of them draw where the blocks of a picture lie.

    Returns:
        Numbers of the patches that are seen (B, Kc) and that are predicted (1, B, Kp), int64, ascending.
    """
    block = block_size(sizes.random(), blocks.grid, blocks.target_scale, blocks.target_aspect)
    count = int(np.median(_unions(blocks, block, SIZES, sizes).sum(axis=1)))
    masks = np.stack([_union(blocks, block, count, generator) for generator in pictures])  # (B, N)
    return patch_numbers(~masks), patch_numbers(masks)[None]


def _union(blocks: MultiBlock, block: tuple[int, int], count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw the mask of a picture, (N,): the first union of so many patches."""
    while True:
        unions = _unions(blocks, block, TRIES, generator)
        fitting = np.flatnonzero(unions.sum(axis=1) == count)
        if len(fitting):
            return unions[fitting[0], :]


def _unions(
    blocks: MultiBlock, block: tuple[int, int], number: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return so many unions of blocks at uniform places, (number, N)."""
    unions: NDArray[np.bool_] = np.logical_or.reduce(
        place_blocks(blocks, block, (number, blocks.targets), generator), axis=1
    )
    return unions
