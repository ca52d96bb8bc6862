"""Outlines of masks and their points: golden figures of VistaLLM's sampling, and OpenCV where it is installed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from granary.training.data.contours import (
    SAMPLERS,
    adaptive,
    area,
    chord_heights,
    douglas_peucker,
    filled,
    least_point,
    outlines,
    padded,
    released,
    uniform,
)

Array = NDArray[np.float64]
MASKS = st.integers(0, 10_000).map(lambda seed: blobs(seed))


def blobs(seed: int) -> NDArray[np.bool_]:
    """A mask (24, 31) of some overlapping ellipses and lines, with several parts and holes."""
    random, image = np.random.default_rng(seed), Image.new("1", (31, 24))
    draw = ImageDraw.Draw(image)
    for number in range(int(random.integers(1, 7))):
        x, y, width, height = (int(value) for value in random.integers(0, 24, 4))
        if number % 3 == 2:
            draw.line((x, y, x + width, y + height // 2), fill=1)
        else:
            draw.ellipse((x, y, x + width // 2, y + height // 2), fill=int(number % 4 != 3))
    return np.array(image, bool)


def square() -> Array:
    """The perimeter of a 10 x 10 square in steps of one, clockwise from (0, 0)."""
    side = np.arange(10.0)
    zero, ten = np.zeros(10), np.full(10, 10.0)
    xs, ys = np.concatenate([side, ten, 10 - side, zero]), np.concatenate([zero, side, ten, 10 - side])
    return np.stack([xs, ys], axis=1)


def turned(seed: int, count: int) -> Array:
    """An outline with whole coordinates and corners anywhere."""
    return np.random.default_rng(seed).integers(0, 50, (count, 2)).astype(float)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_outlines_are_those_of_opencv(mask: NDArray[np.bool_]) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    theirs = {_ring([(int(x), int(y)) for x, y in contour.reshape(-1, 2)][::-1]) for contour in found}
    ours = [_ring([(int(x), int(y)) for x, y in outline]) for outline in outlines(mask)]
    assert len(ours) >= len(theirs)  # theirs has none of a part within a hole
    assert theirs <= set(ours)


def _ring(points: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same for every start: the smallest rotation."""
    return min(tuple(points[start:] + points[:start]) for start in range(len(points)) if points[start] == min(points))


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_an_outline_goes_along_the_pixels_of_its_part_in_steps_of_one(mask: NDArray[np.bool_]) -> None:
    for outline in outlines(mask):
        steps = np.abs(np.diff(outline, axis=0, append=outline[:1])).max(axis=1)
        assert (steps == 1).all() or len(outline) == 1
        assert mask[outline[:, 1].astype(int), outline[:, 0].astype(int)].all()


def test_the_largest_part_comes_first_and_holes_are_left_out() -> None:
    mask = np.zeros((12, 12), bool)
    mask[0, 0], mask[3:10, 3:10], mask[5:8, 5:8] = True, True, False
    first, second = outlines(mask)
    assert (first.min(), first.max(), len(first)) == (3, 9, 24)
    assert second.tolist() == [[0, 0]]
    assert outlines(np.zeros((3, 3), bool)) == []


def test_a_whole_outline_filled_is_the_part_without_its_holes() -> None:
    for seed in range(20):
        for outline in outlines(blobs(seed)):
            part = filled(outline, 24, 31)
            assert part[outline[:, 1].astype(int), outline[:, 0].astype(int)].all()
            assert [ring.tolist() for ring in outlines(part)] == [outline.tolist()]


def test_a_convex_polygon_has_the_pixels_whose_centre_is_inside_and_its_border() -> None:
    points = np.array([[3.0, 2.0], [25.0, 5.0], [20.0, 21.0], [6.0, 17.0]])
    x, y = np.meshgrid(np.arange(31), np.arange(24))
    sides = zip(points, np.roll(points, -1, axis=0), strict=True)
    away = np.min(
        [((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / math.dist(a, b) for a, b in sides], axis=0
    )
    drawn = filled(points, 24, 31)
    assert drawn[away >= 0].all()
    assert not drawn[away <= -1].any()


def test_the_square_keeps_its_corners() -> None:
    points, heights = square(), chord_heights(square())
    assert np.flatnonzero(heights[1:-1]).tolist() == [9, 19, 29]
    assert heights[[10, 20, 30]] == pytest.approx(0.7071068)
    kept = adaptive(points, 5, dense=40)
    assert kept.tolist() == [0, 10, 20, 30, 39]
    assert area(points[kept]) == area(points) == 100
    assert uniform(points, 5).tolist() == [0, 8, 16, 24, 32]
    assert area(points[uniform(points, 5)]) == 80
    assert least_point(points, 5, dense=40).tolist() == released(points, 5).tolist() == kept.tolist()
    assert area(points[douglas_peucker(points, 4)]) == 100


def test_heights_on_a_circle_are_its_sagitta() -> None:
    turn = 2 * np.pi * np.arange(64) / 64
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    assert chord_heights(circle, closed=True) == pytest.approx(0.004815273327803)
    assert chord_heights(circle)[1:-1] == pytest.approx(0.004815273327803)
    assert np.isinf(chord_heights(circle)[[0, -1]]).all()


def test_a_straight_line_has_no_height_and_two_points_are_all_of_it() -> None:
    line = np.stack([np.arange(50.0), 2 * np.arange(50.0)], axis=1)
    assert chord_heights(line)[1:-1] == pytest.approx(0)
    for n in (2, 5, 9):
        for kept in (adaptive(line, n, 50), least_point(line, n), douglas_peucker(line, n, closed=False)):
            assert {0, 49} <= set(kept.tolist())


def test_a_spike_is_as_high_as_it_is_long() -> None:
    spike = np.array([[0.0, 0], [3, 4], [0, 0], [1, 0]])
    assert chord_heights(spike)[1] == 5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(2, 40), st.sampled_from(sorted(SAMPLERS)))
def test_kept_points_rise_and_are_as_many_as_there_can_be(seed: int, count: int, n: int, name: str) -> None:
    kept = SAMPLERS[name](turned(seed, count), n)
    assert (np.diff(kept) > 0).all()
    assert 0 <= kept[0] <= kept[-1] < count
    assert len(kept) == min(count, n) or (name == "released" and len(kept) <= n)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(2, 20), st.sampled_from(sorted(SAMPLERS)))
def test_a_quarter_turn_keeps_the_same_points(seed: int, n: int, name: str) -> None:
    points = turned(seed, 45)
    quarter = np.stack([-points[:, 1], points[:, 0]], axis=1)
    assert SAMPLERS[name](points, n).tolist() == SAMPLERS[name](quarter, n).tolist()


def test_ends_stay_even_where_a_chord_is_higher_than_the_sentinel_of_the_program() -> None:
    points = np.array([[0.0, 0], [500, 900], [1000, 0], [1500, 900], [2000, 0], [2001, 0]])
    assert {0, 5} <= set(adaptive(points, 3, 6).tolist())
    assert 5 not in adaptive(points, 3, 6, closed=True)


def test_equal_heights_are_decided_by_their_order() -> None:
    line = np.stack([np.arange(9.0), np.zeros(9)], axis=1)
    assert adaptive(line, 4, dense=9).tolist() == [0, 6, 7, 8]


def test_the_least_point_is_removed_as_a_slow_loop_removes_it() -> None:
    points = turned(3, 30)
    left = list(range(30))
    while len(left) > 7:
        heights = [
            math.inf if place in (0, len(left) - 1) else _height(*(points[left[place + step]] for step in (-1, 0, 1)))
            for place in range(len(left))
        ]
        del left[heights.index(min(heights))]
    assert least_point(points, 7).tolist() == left


def _height(before: Array, point: Array, after: Array) -> float:
    """By Heron's formula: twice the area over the base."""
    a, b, c = math.dist(before, point), math.dist(point, after), math.dist(before, after)
    half = (a + b + c) / 2
    return 2 * math.sqrt(max(half * (half - a) * (half - b) * (half - c), 0)) / c if c else a


@pytest.mark.parametrize("seed", range(5))
def test_douglas_and_peucker_keep_what_their_recursion_keeps_at_some_tolerance(seed: int) -> None:
    """On a smooth line, where a piece never lies farther from its chord than the whole."""
    x = np.linspace(0, 6, 80)
    line = np.stack([x, np.sin(x + seed) + 0.3 * np.sin(2 * x)], axis=1)
    for tolerance in (0.5, 0.2, 0.05, 0.02):
        recursion = sorted({0, 79, *_recursion(line, 0, 79, tolerance)})
        assert douglas_peucker(line, len(recursion), closed=False).tolist() == recursion


def _recursion(line: Array, start: int, stop: int, tolerance: float) -> list[int]:
    away = [_away(line[start], line[stop], line[place]) for place in range(start + 1, stop)]
    if not away or max(away) <= tolerance:
        return []
    worst = start + 1 + away.index(max(away))
    return [*_recursion(line, start, worst, tolerance), worst, *_recursion(line, worst, stop, tolerance)]


def _away(a: Array, b: Array, point: Array) -> float:
    along = complex(*(b - a))
    return abs((complex(*(point - a)) * along.conjugate()).imag) / abs(along)


def test_padding_repeats_the_last_point_and_adds_no_area() -> None:
    points = square()[:7]
    more, count = padded(points, 16)
    assert (more.shape, count) == ((16, 2), 7)
    assert (more[7:] == points[-1]).all()
    assert area(more) == area(points)
    for wrong in (points[:0], square()):
        with pytest.raises(ValueError, match="cannot be padded to 16"):
            padded(wrong, 16)


def test_fewer_dense_points_than_wanted_and_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="dense: 4 points are fewer than the 5 to keep"):
        adaptive(square(), 5, dense=4)
    for name, sampler in SAMPLERS.items():
        with pytest.raises(ValueError, match="n: 0 points"):
            sampler(square(), 0)
        assert not len(sampler(square()[:0], 3)), name


def test_corners_beat_equal_steps_on_polygons() -> None:
    gains = []
    for seed, n in itertools.product(range(100), (8, 12)):
        random = np.random.default_rng(seed)
        turn = np.sort(random.uniform(0, 2 * np.pi, 7))
        corners = 48 + random.uniform(15, 45, 7)[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        mask = filled(np.rint(corners), 96, 96)
        outline = outlines(mask)[0]
        ours, plain = (filled(outline[kept], 96, 96) for kept in (adaptive(outline, n), uniform(outline, n)))
        gains.append(_iou(ours, mask) - _iou(plain, mask))
    assert np.mean(gains) > 0.01


def _iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())
