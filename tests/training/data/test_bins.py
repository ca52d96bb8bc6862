"""Boxes, points and masks as tokens: nothing is lost but half a bin, and nothing else is read as an answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granary.training.data.bins import (
    BINS,
    LETTERS,
    MARKERS,
    Kind,
    Square,
    bins_of,
    from_bins,
    mask_of,
    parsed,
    points_of,
    to_bins,
    vocabulary,
    written,
)
from granary.training.data.contours import adaptive, filled, outlines
from granary.training.data.tokenizer import TextTokenizer, train_tokenizer

COUNTS: dict[Kind, int] = {"box": 4, "point": 2, "mask": 12}


@settings(deadline=None)
@given(st.floats(0, 1))
def test_a_share_comes_back_within_half_a_bin(share: float) -> None:
    assert abs(float(from_bins(to_bins(np.array([share])))[0]) - share) <= 0.0005 + 1e-12


def test_halves_go_to_the_even_bin_and_bins_are_kept() -> None:
    assert to_bins(np.array([0.0005, 0.0015, 0.0025, 1.0])).tolist() == [0, 2, 2, 1000]
    assert to_bins(from_bins(np.arange(BINS))).tolist() == list(range(BINS))
    assert to_bins(from_bins(np.arange(101), 101), 101).tolist() == list(range(101))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(LETTERS)))
def test_written_and_parsed_is_the_same(data: st.DataObject, kind: Kind) -> None:
    item = st.lists(st.integers(0, BINS - 1), min_size=COUNTS[kind], max_size=COUNTS[kind])
    items = data.draw(st.lists(item, max_size=3))
    text = written(kind, items)
    assert parsed(text, kind, n=6) == items
    assert parsed(text.replace("><", "> \n<"), kind, n=6) == items


def test_the_form_is_that_of_the_paper() -> None:
    assert written("box", [[1, 2, 3, 4]]) == "<b_st><bin_1><bin_2><bin_3><bin_4><b_ed>"
    assert written("point", [[1, 2], [3, 4]]) == "<p_st><bin_1><bin_2><p_sep><bin_3><bin_4><p_ed>"
    assert written("mask", []) == ""


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "<m_st><m_ed>",
        "<bin_1>",
        "<m_st>" + "<bin_1>" * 11 + "<m_ed>",  # 2 n - 1
        "<m_st>" + "<bin_1>" * 13 + "<m_ed>",
        "<m_st>" + "<bin_1>" * 12,
        "<b_st>" + "<bin_1>" * 12 + "<b_ed>",
        "<m_st>" + "<bin_1>" * 11 + "<bin_1001><m_ed>",
        "<m_st>" + "<bin_1>" * 11 + "<bin_01><m_ed>",
        "<m_st>" + "<bin_1>" * 12 + "<m_sep><m_ed>",
        "a dog <m_st>" + "<bin_1>" * 12 + "<m_ed>",
        "<m_st>" + "<bin_1>" * 12 + "<m_ed><m_st>" + "<bin_1>" * 12 + "<m_ed>",
    ],
)
def test_what_is_no_answer_is_not_read_as_nothing_there(text: str) -> None:
    assert parsed(text, "mask", n=6) is None


def test_blank_text_says_that_there_is_nothing_and_a_mask_needs_its_points() -> None:
    assert parsed(" \n", "mask", n=6) == []
    with pytest.raises(ValueError, match="how many points"):
        parsed("", "mask")


def test_every_bin_and_marker_is_one_token() -> None:
    tokens = vocabulary(101)
    assert len(tokens) == 9 + 101
    assert set(MARKERS) < set(tokens)
    tokenizer = TextTokenizer(train_tokenizer(["a dog", "a cat"], 300), 64, causal=True)
    tokenizer.inner.add_special_tokens(tokens)
    numbers = tokenizer.numbers([written("box", [[0, 7, 99, 100]])])[0].tolist()
    assert len(numbers) == 4 + 2 + 2
    assert tokenizer.inner.id_to_token(numbers[3]) == "<bin_7>"


@pytest.mark.parametrize(("width", "height", "shift"), [(40, 25, (0, 7)), (25, 40, (7, 0)), (30, 30, (0, 0))])
def test_a_picture_lies_in_the_middle_of_its_square(width: int, height: int, shift: tuple[int, int]) -> None:
    square = Square.around(width, height)
    assert (square.side, square.left, square.top) == (max(width, height), *shift)
    corners = np.array([[0.0, 0], [width, height]])
    assert square.pixels(square.shares(corners)) == pytest.approx(corners)
    assert square.shares(np.array([[-9.0, 99]])).tolist() == [[0, 1]]
    assert np.abs(points_of(bins_of(corners, width, height), width, height) - corners).max() <= 0.0005 * square.side


def test_masks_of_the_picture_leave_the_padding_out() -> None:
    """The same polygon over the whole square covers the picture alone, whose IoU is then 1."""
    whole = [0, 0, 1000, 0, 1000, 1000, 0, 1000]
    assert mask_of([whole], 40, 25).shape == (25, 40)
    assert mask_of([whole], 40, 25).all()
    assert not mask_of([], 40, 25).any()


def test_several_items_are_one_mask() -> None:
    mask = np.zeros((30, 40), bool)
    mask[3:10, 4:12] = mask[15:26, 20:39] = True
    items = [bins_of(outline[adaptive(outline, 8)], 40, 30) for outline in outlines(mask)]
    assert (mask_of(items, 40, 30) & mask).sum() / (mask_of(items, 40, 30) | mask).sum() > 0.93
    single = filled(points_of(items[0], 40, 30), 30, 40)
    assert (mask_of(items[:1], 40, 30) == single).all()
