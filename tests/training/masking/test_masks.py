"""Facts about I-JEPA's masks: the supports and ratios computed from the published rules, and no leaks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from granary.training.masking.multi_block import MultiBlock, block_size, draw_masks, place_blocks

TARGETS = {
    16: {(5, 7), (6, 6), (6, 7), (7, 6), (8, 6), (9, 6)},
    14: {(5, 6), (6, 5), (6, 6), (7, 5), (8, 5)},
    12: {(4, 5), (5, 5), (6, 4), (6, 5)},
    8: {(3, 3), (4, 3)},
}


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("grid", TARGETS)
def test_block_sizes_are_those_of_the_published_rules(grid: int) -> None:
    numbers = np.linspace(0, 1, 20_001)[:-1]
    assert {block_size(u, grid, (0.15, 0.2), (0.75, 1.5)) for u in numbers} == TARGETS[grid]
    assert {block_size(u, grid, (0.85, 1.0), (1.0, 1.0)) for u in numbers} == {(grid - 1, grid - 1)}


@pytest.mark.parametrize(("batch", "ratio"), [(8, 0.33), (32, 0.29), (128, 0.255)])
def test_context_ratio_of_the_reference_falls_with_the_batch(batch: int, ratio: float) -> None:
    blocks = MultiBlock(14, reference=True)
    shares = [draw_masks(blocks, batch, rng(0, i), rng(1, i)).context.shape[1] / 196 for i in range(5120 // batch)]
    assert np.mean(shares) == pytest.approx(ratio, abs=0.015)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(("grid", "min_keep"), [(14, 10), (8, 4), (16, 10)])
def test_context_and_targets_share_no_patch(grid: int, min_keep: int, reference: bool) -> None:
    blocks = MultiBlock(grid, min_keep=min_keep, reference=reference)
    for step in range(15):
        masks = draw_masks(blocks, 16, rng(step), rng(step, 1))
        assert masks.targets.shape[:2] == (4, 16)
        assert masks.context.shape[0] == 16
        for picture in np.flatnonzero(~masks.relaxed):
            assert not set(masks.context[picture]) & set(masks.targets[:, picture].ravel())
        for numbers in (*masks.context, *masks.targets.reshape(64, -1)):
            assert len(numbers) > min_keep
            assert (np.diff(numbers) > 0).all()
            assert numbers[-1] < grid * grid


def test_targets_are_rectangles_of_one_size() -> None:
    masks = draw_masks(MultiBlock(14), 8, rng(3), rng(4))
    shapes = set()
    for numbers in masks.targets.reshape(32, -1):
        rows, columns = numbers // 14, numbers % 14
        shapes.add((rows.max() - rows.min() + 1, columns.max() - columns.min() + 1))
        assert len(numbers) == np.prod([rows.max() - rows.min() + 1, columns.max() - columns.min() + 1])
    assert len(shapes) == 1
    assert shapes <= TARGETS[14]


def test_sizes_follow_their_own_generator() -> None:
    """Two processes with the same sizes and other places have masks of the same shape of target."""
    one, two = (draw_masks(MultiBlock(14), 4, rng(9), rng(rank)) for rank in (0, 1))
    assert one.targets.shape == two.targets.shape
    assert not np.array_equal(one.targets, two.targets)


def test_the_last_offset_is_drawn_unless_the_reference_is_followed() -> None:
    """At 14 x 14 the authors' code never uses row 13 or column 13, in any context or target."""
    used = {}
    for reference in (False, True):
        seen: set[int] = set()
        for step in range(60):
            masks = draw_masks(MultiBlock(14, reference=reference), 8, rng(step), rng(step, 1))
            seen |= set(masks.context.ravel()) | set(masks.targets.ravel())
        used[reference] = {axis for number in seen for axis in divmod(number, 14)}
    assert used[False] == set(range(14))
    assert used[True] == set(range(13))


def test_places_are_uniform() -> None:
    masks = place_blocks(MultiBlock(8, min_keep=4), (3, 4), (12_000,), rng(0)).reshape(-1, 8, 8)
    tops, lefts = masks.any(axis=2).argmax(axis=1), masks.any(axis=1).argmax(axis=1)
    for found, count in ((tops, 6), (lefts, 5)):
        shares = np.bincount(found, minlength=count) / len(found)
        assert np.abs(shares - 1 / count).max() < 0.015


def test_truncation_of_the_reference_favours_the_top_and_ours_does_not() -> None:
    rows = {}
    for reference in (False, True):
        drawn = [draw_masks(MultiBlock(16, reference=reference), 64, rng(i), rng(i, 1)).context for i in range(40)]
        rows[reference] = np.bincount(np.concatenate([d.ravel() for d in drawn]) // 16, minlength=16)
    top, bottom = (lambda counts: counts[:4].sum()), (lambda counts: counts[12:].sum())
    assert bottom(rows[True]) < 0.5 * top(rows[True])
    assert 0.9 < bottom(rows[False]) / top(rows[False]) < 1.1


def test_a_context_that_cannot_be_free_of_targets_lets_them_in() -> None:
    blocks = MultiBlock(8, targets=12, target_scale=(0.4, 0.4), target_aspect=(1.0, 1.0), min_keep=4)
    masks = draw_masks(blocks, 16, rng(0), rng(1))
    assert masks.relaxed.any()
    assert masks.context.shape[1] > 4


def test_min_keep_that_a_grid_cannot_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8 x 8 grid can have 9 patches"):
        MultiBlock(8, min_keep=10)
    MultiBlock(8, min_keep=8)


def test_masks_are_a_function_of_their_generators() -> None:
    one, two = (draw_masks(MultiBlock(14), 8, rng(5), rng(6)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in itertools.zip_longest(one, two))
