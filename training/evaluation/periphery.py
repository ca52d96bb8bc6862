"""The part of a picture that shows nothing of its objects: crops from their boxes, or a corner where there are none.

Meehan et al. 2023 (arXiv 2304.13850). The width of a picture is cut at the left and right edges of all boxes; in each
interval the boxes that reach into it leave gaps above, between and below them. The gap whose shorter side is longest is
the crop. A gap spans its interval alone, so this is not the largest rectangle without a box.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.boxes import boxes_of
from granary.training.data.collate import Part
from granary.training.data.crops import Box, Crop, resized
from granary.training.data.pixels import decode_pixels

CORNER = 0.3  # of each side
NO_CROP = "NoPeriphery"  # kind of the DecodeError of a picture that has none


def periphery(width: float, height: float, boxes: Sequence[Box], least: float) -> Box | None:
    """Return the gap between the boxes of a picture with the longest shorter side, the first of equal ones.

        >>> periphery(100, 100, [(40, 30, 60, 70)], 20)
        (0.0, 0.0, 40.0, 100.0)

    Args:
        width, height: of the picture.
        boxes: one or more.
        least: the shorter side must be longer than it.

    Returns:
        The crop; None where no gap is large enough, and where a box reaches beyond the right edge.
    """
    if any(right > width for _, _, right, _ in boxes):
        return None
    gaps = [gap for gap in _gaps(width, height, boxes) if _shorter(gap) > least]
    return max(gaps, key=_shorter, default=None)


def corner(width: float, height: float, share: float = CORNER) -> Box:
    """Return the lower left corner of a picture, so large a share of each side."""
    return 0.0, height * (1 - share), width * share, float(height)


def _shorter(box: Box) -> float:
    return min(box[2] - box[0], box[3] - box[1])


def _gaps(width: float, height: float, boxes: Sequence[Box]) -> Iterator[Box]:
    """Yield the gaps, interval by interval from the left, each from above."""
    edges = sorted({0.0, float(width), *(float(x) for box in boxes for x in (box[0], box[2]) if 0 < x < width)})
    for left, right in itertools.pairwise(edges):
        top = 0.0
        for begin, end in sorted((box[1], box[3]) for box in boxes if box[0] < right and box[2] > left):
            yield left, top, right, float(begin)  # of no height, or less, where boxes overlap
            top = max(top, float(end))
        yield left, top, right, float(height)


@dataclass(frozen=True)
class PeripheryViews:
    """Makes the view of a row of what is beside its objects: `granary.training.data.reads.Views`.

    The picture is decoded in full and cut at whole pixels, so that none of a box is in the crop; of the crop the middle
    square is taken.

    Args:
        column: of boxes; None takes the corner of every picture.
        least: the shorter side of a crop must be longer than so many pixels.
        share: of each side, in the corner.
        where: names the dataset, for messages.
    """

    column: str | None
    least: float
    share: float = CORNER
    where: str = "the data"

    def __call__(
        self, row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits
    ) -> Part:
        """Return the view for every crop, (1, side, side, 3) uint8. Raises DecodeError, of kind NO_CROP for none."""
        pixels = decode_pixels(row["data"], limits).pixels
        height, width = pixels.shape[:2]
        box = corner(width, height, self.share) if self.column is None else self._gap(row, width, height)
        square = middle(pixels, box)
        if not square.size:
            raise DecodeError(NO_CROP, f"a crop of {width} x {height} pixels would have none")
        return {name: resized(square, crop.side)[None] for name, crop in crops.items()}

    def _gap(self, row: Part, width: int, height: int) -> Box:
        boxes = boxes_of(row[str(self.column)], f"{self.column} of {self.where}")
        box = periphery(width, height, boxes, self.least) if boxes else None
        if box is not None:
            return box
        if not boxes:
            raise DecodeError(NO_CROP, f"{row['uri']} has no boxes in column {self.column}")
        if any(right > width for _, _, right, _ in boxes):
            raise DecodeError(NO_CROP, f"a box of {row['uri']} reaches beyond its right edge")
        longest = max(0.0, *map(_shorter, _gaps(width, height, boxes)))
        sides = f"{longest:g} px wide or high at most, not above {self.least:g}"
        raise DecodeError(NO_CROP, f"the gaps beside the boxes of {row['uri']} are {sides}")


def middle(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Return the middle square (s, s, 3) of the whole pixels within a box of a picture (H, W, 3); s may be 0."""
    left, top, right, bottom = math.ceil(box[0]), math.ceil(box[1]), math.floor(box[2]), math.floor(box[3])
    side = max(0, min(right - left, bottom - top))
    x, y = left + (right - left - side) // 2, top + (bottom - top - side) // 2
    return pixels[y : y + side, x : x + side]
