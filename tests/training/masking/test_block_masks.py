"""Block-wise masks: how many crops, how many patches, and where."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from granary.training.masking.block_wise import draw_block_mask, draw_block_masks, fill_blocks


def test_half_of_the_crops_are_masked_in_shares_from_every_interval() -> None:
    generator, shares = np.random.default_rng(0), []
    for _ in range(200):
        masks = draw_block_masks(16, 14, 0.5, (0.1, 0.5), generator)
        found = np.sort(masks.mean(axis=1))
        assert (found[:8] == 0).all()
        edges = np.floor(196 * np.linspace(0.1, 0.5, 9)) / 196
        assert (found[8:] <= edges[1:] + 1e-9).all()  # sorted, the k-th is not above the k-th interval
        assert (found[8:] > 0).all()
        shares.append(found[8:])
    mean = float(np.mean(shares))
    assert 0.27 < mean < 0.3
    first, last = np.mean(shares, axis=0)[[0, -1]]
    assert first == pytest.approx(0.125, abs=0.01)
    assert last == pytest.approx(0.475, abs=0.02)
    assert draw_block_masks(7, 14, 0.5, (0.1, 0.5), generator).any(axis=1).sum() == 3


def test_masks_are_at_any_crop_and_any_place_and_made_of_blocks() -> None:
    generator = np.random.default_rng(1)
    masks = np.stack([draw_block_masks(4, 8, 0.5, (0.1, 0.5), generator) for _ in range(500)])
    assert np.allclose(masks.any(axis=2).mean(axis=0), 0.5, atol=0.1)
    places = masks.mean(axis=(0, 1)).reshape(8, 8)
    assert places.min() > 0.02
    np.testing.assert_allclose(places, places[::-1], atol=0.04)
    np.testing.assert_allclose(places, places[:, ::-1], atol=0.04)
    grids = masks.reshape(-1, 8, 8)
    alike = np.mean([(a == b).mean() for grid in grids[:400] for a, b in pairwise(grid)])
    assert alike > 0.85  # independent patches at the same share would agree less
    mask = np.zeros((8, 8), bool)
    fill_blocks(mask, 20, generator)
    assert 4 <= mask.sum() <= 20


@pytest.mark.parametrize(("grid", "count", "smallest"), [(14, 75, 16), (8, 26, 5), (4, 7, 2), (2, 2, 16), (2, 3, 1)])
def test_a_mask_of_one_picture_has_exactly_as_many_patches(grid: int, count: int, smallest: int) -> None:
    for seed in range(50):
        mask = draw_block_mask(grid, count, smallest, np.random.default_rng(seed))
        assert mask.shape == (grid * grid,)
        assert mask.sum() == count
        assert np.array_equal(mask, draw_block_mask(grid, count, smallest, np.random.default_rng(seed)))


def test_large_blocks_make_masks_of_fewer_pieces() -> None:
    """Neighbours of a masked patch are masked more often than by chance, and the more so the larger the blocks."""
    alike = []
    for smallest in (1, 16):
        masks = [draw_block_mask(14, 75, smallest, np.random.default_rng(s)).reshape(14, 14) for s in range(300)]
        alike.append(float(np.mean([(m[:, 1:] == m[:, :-1]).mean() for m in masks])))
    by_chance = 1 - 2 * (75 * 121) / (196 * 195)
    assert by_chance + 0.15 < alike[0] < alike[1]
