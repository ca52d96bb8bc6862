"""Unions of blocks: each is one of exactly so many rectangles, all are equally large, and none knows of the others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from granary.training.masking.block_union import draw_unions, union_blocks
from granary.training.masking.multi_block import block_size

SCALE, ASPECT = (0.15, 0.2), (0.75, 1.5)


def generators(count: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([7, number]) for number in range(first, first + count)]


def mask_of(numbers: NDArray[np.int64], patches: int) -> NDArray[np.bool_]:
    mask = np.zeros(patches, bool)
    mask[numbers] = True
    return mask


def all_unions(grid: int, number: int) -> set[bytes]:
    """Every union of so many rectangles of any size that can be drawn, by enumeration."""
    sizes = {block_size(u, grid, SCALE, ASPECT) for u in np.linspace(0, 1, 1001)}
    found = set()
    for height, width in sizes:
        places = []
        for top, left in itertools.product(range(grid - height + 1), range(grid - width + 1)):
            mask = np.zeros((grid, grid), bool)
            mask[top : top + height, left : left + width] = True
            places.append(mask.flatten())
        for chosen in itertools.combinations_with_replacement(places, number):
            found.add(np.any(chosen, axis=0).tobytes())
    return found


def test_a_mask_is_the_whole_union_of_so_many_rectangles() -> None:
    blocks, possible = union_blocks(6, 2, SCALE, ASPECT), all_unions(6, 2)
    for seed in range(20):
        _, predicted = draw_unions(blocks, np.random.default_rng(seed), generators(8))
        assert all(mask_of(numbers, 36).tobytes() in possible for numbers in predicted[0])


def test_what_is_not_predicted_is_seen() -> None:
    seen, predicted = draw_unions(union_blocks(14, 4, SCALE, ASPECT), np.random.default_rng(0), generators(5))
    assert predicted.shape[:2] == (1, 5)
    for picture in range(5):
        both = np.concatenate([seen[picture], predicted[0, picture]])
        assert sorted(both) == list(range(196))
        assert (np.diff(seen[picture]) > 0).all()
        assert (np.diff(predicted[0, picture]) > 0).all()


def test_masks_hang_neither_on_the_batch_nor_on_their_place_in_it() -> None:
    blocks = union_blocks(8, 4, SCALE, ASPECT)
    _, together = draw_unions(blocks, np.random.default_rng(3), generators(6))
    _, alone = draw_unions(blocks, np.random.default_rng(3), generators(2, first=4))
    assert np.array_equal(together[:, 4:], alone)
    assert len({tuple(row) for row in together[0]}) > 1


def test_sizes_are_those_of_unions_that_are_drawn_once_and_no_rare_ones() -> None:
    blocks = union_blocks(6, 4, SCALE, ASPECT)
    counts = [draw_unions(blocks, np.random.default_rng(seed), generators(1))[1].shape[2] for seed in range(300)]
    rng = np.random.default_rng(0)
    free = []
    for _ in range(3000):  # four rectangles, drawn with loops
        height, width = block_size(rng.random(), 6, SCALE, ASPECT)
        mask = np.zeros((6, 6), bool)
        for _ in range(4):
            top, left = rng.integers(0, 6 - height + 1), rng.integers(0, 6 - width + 1)
            mask[top : top + height, left : left + width] = True
        free.append(mask.sum())
    assert np.mean(counts) == pytest.approx(np.mean(free), abs=0.5)
    assert np.quantile(free, 0.02) <= min(counts)
    assert max(counts) <= np.quantile(free, 0.98)
    assert len(set(counts)) > 4


def test_blocks_that_could_be_empty_or_cover_everything_are_refused() -> None:
    with pytest.raises(ValueError, match="a block of the 2 x 2 grid can be empty"):
        union_blocks(2, 4, SCALE, ASPECT)
    with pytest.raises(ValueError, match="6 blocks of 6 patches can cover the 6 x 6 grid"):
        union_blocks(6, 6, SCALE, ASPECT)
    assert union_blocks(6, 5, SCALE, ASPECT).targets == 5
