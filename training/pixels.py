"""Decoding for training: a plain JPEG goes to an array in one call of libjpeg-turbo, all else through Pillow.

Both give the same pixels; the first takes a half (photographs) to a tenth (thumbnails) of the second's time. What a
plain JPEG is not sure to be, or is found damaged, is left to `curation.decode`, which also says why a file is refused.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from curation.decode import SCAN_PIXELS, DecodeLimits, decode, exif_orientation

JPEG = b"\xff\xd8\xff"
START_OF_SCAN, SEVERAL_PICTURES = b"\xff\xda", b"MPF\0"
ORIENTED = (b"Exif\0\0", b"Orientation")  # EXIF, XMP: what may say that the picture lies on its side
COLOURS = ("YCbCr", "Gray")


class Picture(NamedTuple):
    """An upright picture: pixels (H, W, 3) uint8, read-only or not; width, height of the original before scaling."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decode_pixels(data: bytes, limits: DecodeLimits, side: int | None = None) -> Picture:
    """Decode the first frame to RGB; see `curation.decode.decode` for the arguments and for what is raised."""
    picture = _plain_jpeg(data, limits, side)
    if picture is None:
        decoded = decode(data, limits, side)
        picture = Picture(np.asarray(decoded.image), decoded.width, decoded.height)
    return picture


def _plain_jpeg(data: bytes, limits: DecodeLimits, side: int | None) -> Picture | None:
    """Return the picture of an undamaged upright JPEG within the limits; None for any other."""
    if not data.startswith(JPEG) or len(data) > limits.max_bytes or SEVERAL_PICTURES in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        scans = data.count(START_OF_SCAN)
        small = width * height <= limits.max_pixels and scans * width * height <= SCAN_PIXELS * limits.max_pixels
        if not small or colours not in COLOURS or not _upright(data):
            return None
        scale = next(n for n in (8, 4, 2, 1) if n == 1 or (side and n <= min(width, height) // side))
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
        return Picture(simplejpeg.decode_jpeg(data, **least), width, height)
    except ValueError:  # damaged, or of a kind that this library does not take
        return None


def _upright(data: bytes) -> bool:
    """Say whether no EXIF or XMP block of a JPEG turns it."""
    if not any(mark in data for mark in ORIENTED):
        return True
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return exif_orientation(image) == 1
    except Exception:  # noqa: BLE001 Pillow raises many classes; `decode` will say what is wrong
        return False
