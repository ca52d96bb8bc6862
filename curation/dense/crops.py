"""The picture of a mask: its bounds grown, cut out of the image, and what lies outside of it darkened."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.curation.dense.tree import Box

DARKER = [value // 3 + 84 for value in range(256)] * 3


def large_enough(box: Box, side: int = 224) -> bool:
    """Say whether bounds are at least `side` pixels wide and high, before they are grown."""
    return box[2] - box[0] >= side and box[3] - box[1] >= side


def grown(box: Box, width: int, height: int, share: float = 0.15) -> Box:
    """Return bounds grown by int(share * side) to each side, clipped to an image of width x height."""
    across, down = int(share * (box[2] - box[0])), int(share * (box[3] - box[1]))
    return max(0, box[0] - across), max(0, box[1] - down), min(width, box[2] + across), min(height, box[3] + down)


def cut(image: Image.Image, box: Box, mask: NDArray[np.bool_] | None = None) -> Image.Image:
    """Return the part of an RGB image in a box.

    Args:
        image: the whole image.
        box: in its pixels.
        mask: (height, width) bool of the whole image; pixels outside of it become pixel // 3 + 84. None: none do.
    """
    part = image.crop(box)
    if mask is None:
        return part
    inside = Image.fromarray(np.where(mask[box[1] : box[3], box[0] : box[2]], np.uint8(255), np.uint8(0)))
    return Image.composite(part, part.point(DARKER), inside)


def encoded(image: Image.Image, format: str, quality: int) -> bytes:
    """Return an RGB image as PNG, or as JPEG of a quality with colours at half the resolution, as photographs have."""
    file = io.BytesIO()
    if format == "png":
        image.save(file, "PNG", compress_level=6)
    else:
        image.save(file, "JPEG", quality=quality, subsampling=2)
    return file.getvalue()
