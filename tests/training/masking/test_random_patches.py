"""Random masks: as many patches in each, whole blocks, all places alike."""

from __future__ import annotations

import numpy as np
import pytest

from granary.training.masking.random_patches import draw_random_mask, masked_count


@pytest.mark.parametrize(
    ("patches", "ratio", "count"), [(196, 0.75, 147), (49, 0.6, 30), (100, 0.07, 7), (100, 0.9, 90)]
)
def test_the_share_is_rounded_up_and_no_more_than_that(patches: int, ratio: float, count: int) -> None:
    assert masked_count(patches, ratio) == count


@pytest.mark.parametrize(("grid", "block", "count"), [(8, 1, 39), (8, 2, 40), (6, 3, 27)])
def test_whole_blocks_are_masked(grid: int, block: int, count: int) -> None:
    mask = draw_random_mask(grid, 0.6, np.random.default_rng(0), block).reshape(grid, grid)
    assert mask.sum() == count
    for row in range(0, grid, block):
        for column in range(0, grid, block):
            assert len(set(mask[row : row + block, column : column + block].ravel().tolist())) == 1


def test_every_patch_is_masked_as_often_and_masks_are_reproduced() -> None:
    masks = np.stack([draw_random_mask(4, 0.75, np.random.default_rng(seed)) for seed in range(2000)])
    assert abs(masks.mean(axis=0) - 0.75).max() < 0.05
    assert np.array_equal(masks[3], draw_random_mask(4, 0.75, np.random.default_rng(3)))
