"""Crops beside boxes: by hand, against a mask of pixels, and that no pixel of a box is in one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_shards import encoded

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.crops import Box, Crop
from granary.training.evaluation.periphery import NO_CROP, PeripheryViews, corner, middle, periphery


def test_one_box_by_hand() -> None:
    """The strips left and right are 40 wide, the places above and below 20 x 30: the first strip is taken."""
    assert periphery(100, 100, [(40, 30, 60, 70)], 20) == (0, 0, 40, 100)
    assert periphery(100, 100, [(40, 30, 60, 70)], 39.5) == (0, 0, 40, 100)
    assert periphery(100, 100, [(40, 30, 60, 70)], 40) is None  # it must be longer


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(0, 0, 100, 100)], None),
        ([(-5, -5, 100, 130)], None),
        ([(10, 0, 101, 10)], None),  # beyond the right edge
        ([(0, 40, 100, 45)], (0, 45, 100, 100)),
        ([(0, 20, 100, 60), (0, 50, 100, 80)], None),  # merged: 20 above, 20 below
        ([(0, 21.5, 100, 60), (0, 50, 100, 80)], (0, 0, 100, 21.5)),
        ([(0, 10, 100, 90), (0, 20, 100, 30)], None),  # one within the other
        ([(0, 0, 100, 30), (0, 70, 100, 100)], (0, 30, 100, 70)),  # between
        ([(0, 0, 50, 30), (50, 70, 100, 100)], (0, 30, 50, 100)),  # gaps end where an interval does
    ],
)
def test_several_boxes_by_hand(boxes: list[Box], expected: Box | None) -> None:
    assert periphery(100, 100, boxes, 20) == expected


def slow(width: int, height: int, boxes: list[tuple[int, int, int, int]]) -> int:
    """Return the longest shorter side of a gap, from a mask of pixels."""
    best, edges = 0, sorted({0, width, *(x for box in boxes for x in (box[0], box[2]))})
    for left, right in itertools.pairwise(edges):
        covered = np.zeros(height, bool)
        for x0, y0, x1, y1 in boxes:
            if max(left, x0) < min(right, x1):
                covered[y0:y1] = True
        run = 0
        for full in [*covered.tolist(), True]:
            run = 0 if full else run + 1
            best = max(best, min(run, right - left))
    return best


def test_random_boxes_against_a_mask_of_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(x) for x in rng.integers(20, 60, 2))
        boxes = []
        for _ in range(int(rng.integers(1, 6))):
            x, y = sorted(rng.integers(0, width + 1, 2).tolist()), sorted(rng.integers(0, height + 1, 2).tolist())
            if x[0] < x[1] and y[0] < y[1]:
                boxes.append((x[0], y[0], x[1], y[1]))
        if not boxes:
            continue
        found, best = periphery(width, height, boxes, 3), slow(width, height, boxes)
        assert (found is None) == (best <= 3)
        if found is not None:
            left, top, right, bottom = found
            assert min(right - left, bottom - top) == best
            for x0, y0, x1, y1 in boxes:  # no part of a box is in it
                assert max(0, min(right, x1) - max(left, x0)) * max(0, min(bottom, y1) - max(top, y0)) == 0
        assert periphery(width, height, boxes[::-1], 3) == found


def row(image: Image.Image, boxes: Any, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    return {"data": encoded(image, kind, **options), "uri": "a.png", "boxes": boxes, "size": None, "key": "a"}


def view(one: dict[str, Any], least: float = 8, column: str | None = "boxes", side: int = 16) -> np.ndarray:
    views = PeripheryViews(column, least, where="RUN")
    made = views(one, np.random.default_rng(0), {"image": Crop(1, side, centre=True)}, DecodeLimits())
    array: np.ndarray = made["image"]
    return array


def test_no_pixel_of_a_box_is_in_the_view() -> None:
    rng = np.random.default_rng(1)
    for number in range(60):
        width, height = (int(x) for x in rng.integers(40, 90, 2))
        left, top = rng.uniform(0, width - 12), rng.uniform(0, height - 12)
        box = [left, top, left + rng.uniform(3, 12), top + rng.uniform(3, 12)]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 2] = 200
        rows, columns = (slice(int(box[n]), int(np.ceil(box[n + 2]))) for n in (1, 0))
        pixels[rows, columns] = (255, 0, 0)  # every pixel that a box of fractions touches
        seen = view(row(Image.fromarray(pixels), [box]), side=int(rng.integers(8, 40)))
        assert seen.shape[0] == 1
        assert seen[..., 0].max() == 0, number
        assert seen[..., 2].min() == 200


def test_a_picture_that_lies_on_its_side_is_upright_first() -> None:
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[30:, :] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 8
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_270)
    one = row(turned, [[0, 30, 40, 60]], exif=exif)
    assert view(one)[..., 0].max() == 0


def test_the_corner_is_the_lower_left_one() -> None:
    assert corner(100, 50) == (0, 35, 30, 50)
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[35:, :30] = 255
    assert view(row(Image.fromarray(pixels), None), column=None).min() == 255


def test_the_middle_square_is_of_whole_pixels_within() -> None:
    pixels = np.arange(100).reshape(10, 10, 1).repeat(3, axis=2).astype(np.uint8)
    assert middle(pixels, (1.5, 2.5, 9.5, 6.9))[..., 0].tolist() == [[34, 35, 36], [44, 45, 46], [54, 55, 56]]
    assert middle(pixels, (1.5, 2.5, 2.4, 6)).size == 0


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (None, "a.png has no boxes in column boxes"),
        ([], "a.png has no boxes in column boxes"),
        ([[0, 0, 40, 40]], "the gaps beside the boxes of a.png are 0 px wide or high at most, not above 8"),
        ([[7, 0, 40, 40]], "are 7 px wide or high at most, not above 8"),
        ([[7, 0, 41, 40]], "a box of a.png reaches beyond its right edge"),
    ],
)
def test_a_picture_without_a_crop_says_why(boxes: Any, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        view(row(Image.new("RGB", (40, 40)), boxes))
    assert caught.value.kind == NO_CROP


def test_hostile_rows() -> None:
    with pytest.raises(UserError, match="boxes: boxes of RUN is not right"):
        view(row(Image.new("RGB", (40, 40)), [[1, 2]]))
    with pytest.raises(DecodeError) as caught:
        view({**row(Image.new("RGB", (40, 40)), [[1, 1, 2, 2]]), "data": b"no picture"})
    assert caught.value.kind != NO_CROP
    with pytest.raises(DecodeError, match="would have none"):
        view(row(Image.new("RGB", (2, 2)), None), column=None)
