"""One or several pictures of a row, each in the middle of a white square, as `bins.Square` places coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.bins import Square
from granary.training.data.collate import Part
from granary.training.data.crops import Crop, resized
from granary.training.data.pixels import decode_pixels

WHITE = 255


def squared(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) in the middle of a white square: (side, side, 3)."""
    height, width = pixels.shape[:2]
    square = Square.around(width, height)
    canvas = np.full((square.side, square.side, 3), WHITE, np.uint8)
    canvas[square.top : square.top + height, square.left : square.left + width] = pixels
    return resized(canvas, side)


def pasted_views(row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits) -> Part:
    """Return the pictures of a row, see `Reads.views`: its crop says how many there are at most, and their side.

    Args:
        row: with `pictures`, the bytes of each.
        generator: not used: nothing is drawn.
        crops: one.
        limits: of decoding.

    Returns:
        NAME (count, side, side, 3) uint8, white where there are fewer pictures; NAME_count, int64, how many there are;
        NAME_sizes (count, 2) int64, width and height of each, 0 where there is none.

    Raises:
        DecodeError: one is damaged or beyond the limits, there is none, or there are more than `count`.
    """
    ((name, crop),) = crops.items()
    files = row["pictures"]
    if not 0 < len(files) <= crop.count:
        raise DecodeError("NumberOfPictures", f"the row has {len(files)} pictures, not 1 to {crop.count}")
    pixels = np.full((crop.count, crop.side, crop.side, 3), WHITE, np.uint8)
    sizes = np.zeros((crop.count, 2), np.int64)
    for place, data in enumerate(files):
        picture = decode_pixels(data, limits).pixels
        pixels[place], sizes[place] = squared(picture, crop.side), picture.shape[1::-1]
    return {name: pixels, f"{name}_count": np.int64(len(files)), f"{name}_sizes": sizes}
