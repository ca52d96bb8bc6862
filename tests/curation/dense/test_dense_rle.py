"""Run-length codes against pixels, against COCO's own files, and against a plain reading of its text."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED

from granary.curation.dense import rle
from granary.curation.dense.polygons import rasterised


def plain_text(lengths: list[int]) -> str:
    """Write run lengths one at a time, as the COCO interface documents its text."""
    text = ""
    for place, length in enumerate(lengths):
        value = length - lengths[place - 2] if place > 2 else length
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != -1 if group & 0x10 else value != 0
            text += chr(group + (0x20 if more else 0) + 48)
    return text


def plain_runs(mask: np.ndarray) -> list[int]:
    """Count runs pixel by pixel down the columns."""
    runs, current = [0], False
    for pixel in mask.T.ravel():
        if bool(pixel) != current:
            runs.append(0)
            current = bool(pixel)
        runs[-1] += 1
    return runs


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 2**32))).random((height, width)) < density


@settings(max_examples=120, deadline=None)
@given(masks())
def test_runs_text_area_and_bounds_are_those_of_the_pixels(mask: np.ndarray) -> None:
    height, width = mask.shape
    lengths = rle.run_lengths(mask)
    assert lengths.tolist() == plain_runs(mask)
    assert rle.compress(lengths) == plain_text(lengths.tolist())
    assert np.array_equal(rle.decompress(rle.compress(lengths)), lengths)
    assert np.array_equal(rle.mask_of(lengths, height, width), mask)
    assert rle.area(lengths) == mask.sum()
    rows, columns = np.nonzero(mask)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if mask.any() else None
    assert rle.bounds(lengths, height) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12))
def test_two_changes_in_one_place_undo_each_other(changes: list[int]) -> None:
    flat = np.zeros(40, bool)
    for change in changes:
        flat[change:] ^= True
    assert rle.between(np.array(changes, np.int64), 40).tolist() == plain_runs(flat[:, None])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 2**34), min_size=1, max_size=20))
def test_the_text_holds_any_lengths(lengths: list[int]) -> None:
    assert rle.compress(np.array(lengths)) == plain_text(lengths)
    assert rle.decompress(plain_text(lengths)).tolist() == lengths


@pytest.mark.parametrize(
    "segmentation",
    [
        {},
        {"size": [2, 2]},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": "o"},
        {"size": [2, 2], "counts": "ooooooooooooooooooo0"},
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [0, 2], "counts": [0]},
        {"size": ["a", 2], "counts": [0]},
        {"size": [10**9, 10**9], "counts": [10**18]},
        {"size": [2, 2], "counts": [[1, 2], [3]]},
    ],
)
def test_what_is_no_code_raises_value_error(segmentation: dict) -> None:
    with pytest.raises(ValueError, match="run"):
        rle.read(segmentation)


def test_the_masks_of_a_published_annotation_come_out_as_they_went_in() -> None:
    path = SHARED / "masklets_sav_sample.json.gz"
    if not path.exists():
        pytest.skip("shared/data is not beside the checkout")
    codes = [code for frame in json.loads(gzip.decompress(path.read_bytes()))["masklet"] for code in frame]
    assert len(codes) == 605
    for code in codes:
        lengths, height, width = rle.read(code)
        assert rle.compress(rle.run_lengths(rle.mask_of(lengths, height, width))) == code["counts"]


def test_polygons_cover_the_pixels_whose_middle_they_hold() -> None:
    lengths = rasterised([[2, 3, 8, 3, 8, 7, 2, 7]], 10, 12)
    mask = rle.mask_of(lengths, 10, 12)
    expected = np.zeros((10, 12), bool)
    expected[3:7, 2:8] = True
    assert np.array_equal(mask, expected)


def test_polygons_agree_with_the_even_odd_rule_away_from_their_outline() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = np.stack([30 + 25 * np.cos(angles), 24 + 20 * np.sin(angles)], 1)
        mask = rle.mask_of(rasterised([points.ravel().tolist()], 48, 60), 48, 60)
        rows, columns = np.mgrid[:48, :60]
        x, y = columns + 0.5, rows + 0.5
        inside, near = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0 if y1 != y0 else 1))
            along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
            near |= np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) < 1
        assert np.array_equal(mask[~near], inside[~near])


def test_polygons_unite() -> None:
    both = rasterised([[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]], 8, 8)
    assert rle.area(both) == 16 + 16 - 4


@pytest.mark.parametrize(
    "polygons", [[], "x", [[1, 2]], [[1, 2, 3, 4, 5]], [["a"] * 6], [[float("nan")] * 6], [[1e9] * 6]]
)
def test_what_is_no_outline_raises_value_error(polygons: object) -> None:
    with pytest.raises(ValueError, match=r"polygon|outline"):
        rasterised(polygons, 8, 8)
