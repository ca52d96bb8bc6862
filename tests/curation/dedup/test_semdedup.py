from __future__ import annotations

import numpy as np
import pytest

from granary.curation.dedup.semdedup import earlier_similarity, scan_order, semdedup, stays
from granary.curation.store.sampling import priority


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def at_degrees(*angles: float) -> np.ndarray:
    radians = np.radians(angles)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


def random_cell(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cell with copies, near-copies and equal distances to its centroid."""
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 60)), int(rng.integers(2, 20))
    rows = rng.normal(size=(n, d)).astype(np.float32)
    rows[rng.integers(0, n, n // 3)] = rows[0]
    rows[rng.integers(0, n, n // 4)] += 0.02 * rng.normal(size=d).astype(np.float32)
    rows[rng.integers(0, n, n // 5), -1] *= -1  # mirrored: as near to a centroid with last component 0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    centroid = unit_rows(1, d, seed)[0]
    centroid[-1] = 0
    return rows, rng.permutation(n).astype(str), centroid


def python_loop(
    rows: np.ndarray, ids: np.ndarray, centroid: np.ndarray, epsilon: float, keep: str, seed: int
) -> tuple[list[bool], list[np.float32]]:
    def similarity(a: np.ndarray, b: np.ndarray) -> np.float32:
        return np.float32(np.sum(a.astype(np.float64) * b))

    near = [similarity(row, centroid) for row in rows]
    if keep == "random":
        hashed = priority(seed, ids, "semdedup")
        order = sorted(range(len(rows)), key=lambda i: (hashed[i], ids[i]))
    else:
        order = sorted(range(len(rows)), key=lambda i: (near[i] if keep == "hard" else -near[i], ids[i]))
    highest = [np.float32(-np.inf)] * len(rows)
    for place, j in enumerate(order):
        for i in order[:place]:
            highest[j] = max(highest[j], similarity(rows[i], rows[j]))
    return [not value > 1 - epsilon for value in highest], highest


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_masks_and_scores_are_those_of_a_python_loop_for_any_tile(keep):
    removed = 0
    for seed in range(50):
        rows, ids, centroid = random_cell(seed)
        expected, scores = python_loop(rows, ids, centroid, 0.05, keep, seed)
        removed += expected.count(False)
        for tile in (1, 7, 64):
            mask, highest = semdedup(rows, ids, centroid, 0.05, keep, seed, tile)
            assert mask.tolist() == expected
            assert highest.tolist() == scores
    assert removed > 200


@pytest.mark.parametrize("keep", ["hard", "easy", "random"])
def test_input_order_does_not_matter(keep):
    rows, ids, centroid = random_cell(3)
    mask, highest = semdedup(rows, ids, centroid, 0.05, keep, seed=2)
    shuffle = np.random.default_rng(0).permutation(len(rows))
    again, same_highest = semdedup(rows[shuffle], ids[shuffle], centroid, 0.05, keep, seed=2)
    assert np.array_equal(again, mask[shuffle])
    assert np.array_equal(same_highest, highest[shuffle])


def test_scores_of_near_copies_are_exact_for_any_tile():
    rows = np.repeat(unit_rows(4, 384, 0), 20, axis=0)
    rows += 1e-7 * np.random.default_rng(1).normal(size=rows.shape).astype(np.float32)
    exact = [[np.float32(np.sum(a.astype(np.float64) * b)) for b in rows] for a in rows]
    expected = [np.float32(-np.inf), *(max(exact[j][:j]) for j in range(1, 80))]
    rough = rows @ rows.T
    assert any(np.argmax(rough[j, :j]) != np.argmax(exact[j][:j]) for j in range(1, 80))
    for tile in (1, 7, 64, 80):
        assert earlier_similarity(rows, tile).tolist() == expected


def test_kept_count_does_not_grow_with_epsilon():
    rows, ids, centroid = random_cell(11)
    highest = semdedup(rows, ids, centroid, 0)[1]
    kept = [stays(highest, epsilon).sum() for epsilon in np.linspace(0, 2, 81)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[20] > kept[-1] == 1


def test_a_similarity_of_exactly_one_minus_epsilon_stays():
    rows = np.array([[1, 0], [0.75, np.sqrt(1 - 0.75**2)]], np.float32)
    highest = earlier_similarity(rows)
    assert highest[1] == np.float32(0.75)
    assert stays(highest, 0.25).tolist() == [True, True]
    assert stays(highest, 0.25 + 1e-9).tolist() == [True, False]


def test_the_scan_order_decides_a_chain():
    threshold = np.cos(np.radians(15))
    for angles, kept in (((0, 10, 20, 30), {0}), ((0, 20, 10, 30), {0, 20})):
        mask = stays(earlier_similarity(at_degrees(*angles)), 1 - threshold)
        assert {angle for angle, stay in zip(angles, mask, strict=True) if stay} == kept


def test_of_identical_items_exactly_one_survives():
    rows, ids = np.repeat(unit_rows(1, 16, 0), 5, axis=0), np.array(list("bcade"))
    for keep in ("hard", "easy"):
        mask, _ = semdedup(rows, ids, unit_rows(1, 16, 1)[0], 0.01, keep)
        assert ids[mask].tolist() == ["a"]
    assert semdedup(rows, ids, unit_rows(1, 16, 1)[0], 0.01, "random", tile=2)[0].sum() == 1


def test_hard_keeps_the_farthest_and_easy_the_nearest():
    rows, centroid = at_degrees(5, 40, 20, 10), at_degrees(0)[0]
    assert scan_order(rows, list("abcd"), centroid, "hard").tolist() == [1, 2, 3, 0]
    assert scan_order(rows, list("abcd"), centroid, "easy").tolist() == [0, 3, 2, 1]
    with pytest.raises(ValueError, match="'best'"):
        scan_order(rows, list("abcd"), centroid, "best")  # type: ignore[arg-type]


def test_empty_and_single_cells():
    centroid = unit_rows(1, 4, 0)[0]
    mask, highest = semdedup(unit_rows(1, 4, 1)[:0], [], centroid, 0.1)
    assert len(mask) == len(highest) == 0
    mask, highest = semdedup(unit_rows(1, 4, 1), ["a"], centroid, 0.1)
    assert (mask.tolist(), highest.tolist()) == ([True], [-np.inf])
