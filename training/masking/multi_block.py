"""I-JEPA's multi-block masks (arXiv 2301.08243, section 3): target blocks, and a context block without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PATIENCE = 20  # failures of the context block before one more target may overlap it


@dataclass(frozen=True)
class MultiBlock:
    """How masks are drawn.

    Args:
        grid: patches along a side.
        targets: M.
        target_scale, context_scale: least and largest share of the grid.
        target_aspect: least and largest ratio of height to width.
        min_keep: every mask has more patches than this.
        reference: draw as the authors' code does, where the last offset of a block is never drawn and the context keeps
            the first patches in raster order.
    """

    grid: int
    targets: int = 4
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)
    context_scale: tuple[float, float] = (0.85, 1.0)
    min_keep: int = 10
    reference: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where blocks of the grid could have min_keep patches or fewer."""
        for scale, aspect in ((self.target_scale, self.target_aspect), (self.context_scale, (1.0, 1.0))):
            smallest = min(math.prod(block_size(u, self.grid, scale, aspect)) for u in np.linspace(0, 1, 1001))
            if smallest <= self.min_keep:
                raise ValueError(
                    f"min_keep is {self.min_keep}, but a block of the {self.grid} x {self.grid} grid can have "
                    f"{smallest} patches; give a smaller min_keep"
                )


class Masks(NamedTuple):
    """Patch numbers, ascending.

    Args:
        context: (B, Kc) int64.
        targets: (M, B, Kp) int64.
        relaxed: (B,) bool, whether a target may overlap.
    """

    context: NDArray[np.int64]
    targets: NDArray[np.int64]
    relaxed: NDArray[np.bool_]


def block_size(u: float, grid: int, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
    """Return (height, width) of a block; the one number u in 0..1 decides area and aspect. Less than the whole side."""
    area = int(grid * grid * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    return min(round(math.sqrt(area * ratio)), grid - 1), min(round(math.sqrt(area / ratio)), grid - 1)


def draw_masks(blocks: MultiBlock, batch: int, sizes: np.random.Generator, places: np.random.Generator) -> Masks:
    """Draw the masks of a batch.

        >>> rng = np.random.default_rng(0)
        >>> masks = draw_masks(MultiBlock(grid=14), 2, rng, rng)
        >>> masks.context.shape[0], masks.targets.shape[:2]  # two pictures; four targets of each
        (2, (4, 2))

    Args:
        blocks: how.
        batch: B.
        sizes: draws the two block sizes, which all pictures share: the same generator on every process.
        places: draws where the blocks lie.
    """
    target = block_size(sizes.random(), blocks.grid, blocks.target_scale, blocks.target_aspect)
    context = block_size(sizes.random(), blocks.grid, blocks.context_scale, (1.0, 1.0))
    taken = place_blocks(blocks, target, (batch, blocks.targets), places)  # (B, M, N)
    kept, relaxed = _contexts(blocks, context, taken, places)
    numbers = patch_numbers(taken.reshape(batch * blocks.targets, -1))
    targets = np.moveaxis(numbers.reshape(batch, blocks.targets, -1), 1, 0)
    return Masks(patch_numbers(kept, None if blocks.reference else places), np.ascontiguousarray(targets), relaxed)


def place_blocks(
    blocks: MultiBlock, size: tuple[int, int], shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return masks (*shape, N) of blocks of a size at uniform places."""
    grid, extra = blocks.grid, 0 if blocks.reference else 1
    inside = []
    for length in size:
        first = generator.integers(0, grid - length + extra, shape)[..., None]
        inside.append((np.arange(grid) >= first) & (np.arange(grid) < first + length))
    rows, columns = inside
    return (rows[..., :, None] & columns[..., None, :]).reshape(*shape, grid * grid)


def _contexts(
    blocks: MultiBlock, size: tuple[int, int], taken: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return context masks (B, N) of more than min_keep patches, and for which pictures a target was let in."""
    kept = np.zeros((len(taken), taken.shape[2]), bool)
    relaxed = np.zeros(len(taken), bool)
    pending, tries, excluded = np.arange(len(taken)), 0, taken.shape[1]
    while len(pending):
        proposed = place_blocks(blocks, size, (len(pending),), generator) & ~taken[pending, :excluded].any(axis=1)
        good = proposed.sum(axis=1) > blocks.min_keep
        kept[pending[good]] = proposed[good]
        relaxed[pending[good]] = excluded < taken.shape[1]
        pending, tries = pending[~good], tries + 1
        excluded -= tries % PATIENCE == 0
    return kept, relaxed


def patch_numbers(masks: NDArray[np.bool_], generator: np.random.Generator | None = None) -> NDArray[np.int64]:
    """Return the numbers of the patches of each mask (n, N), as many as the smallest has: (n, K), ascending.

    They are the first of each mask, which favours the top of the picture, or with a generator random ones.
    """
    count = int(masks.sum(axis=1).min())
    if generator is None:
        return np.argsort(~masks, axis=1, kind="stable")[:, :count]
    scores = np.where(masks, generator.random(masks.shape), 2.0)
    return np.sort(np.argsort(scores, axis=1, kind="stable")[:, :count], axis=1)
