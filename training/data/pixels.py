"""Decoding for training: a plain JPEG goes to an array in one call of libjpeg-turbo, all else through Pillow.

Both give the same pixels, unless `fast` is asked for; the first takes a half (photographs) to a tenth (thumbnails) of
the second's time. What a plain JPEG is not sure to be, or is found damaged, is left to `images.decode`, which also
says why a file is refused.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from granary.curation.images.decode import SCAN_PIXELS, decode, exif_orientation
from granary.curation.images.limits import DecodeLimits

JPEG = b"\xff\xd8\xff"
START_OF_SCAN, SEVERAL_PICTURES = b"\xff\xda", b"MPF\0"
LEAST_SCAN = 8  # bytes of the smallest header of a scan
SMALL = 4096  # bytes that are searched as fast as they are divided into segments
ORIENTED = (b"Exif\0\0", b"Orientation")  # EXIF, XMP: what may say that the picture lies on its side
COLOURS = ("YCbCr", "Gray")


class DecodedPixels(NamedTuple):
    """An upright picture: pixels (H, W, 3) uint8, read-only or not; width, height of the original before scaling."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decode_pixels(data: bytes, limits: DecodeLimits, side: int | None = None, fast: bool = False) -> DecodedPixels:
    """Decode the first frame to RGB, as `curation.images.decode.decode` does, but faster where it can be.

    Args:
        data: the file.
        limits: what is refused.
        side: the short side that the picture is needed at; None decodes in full.
        fast: repeat the colours of a JPEG that stores them at half the size rather than smooth them, which saves a
            sixth of the time: for views that are cropped and changed at random anyway.

    Raises:
        DecodeError: the file is damaged or beyond the limits.
    """
    picture = _plain_jpeg(data, limits, side, fast)
    if picture is None:
        decoded = decode(data, limits, side)
        picture = DecodedPixels(np.asarray(decoded.image), decoded.width, decoded.height)
    return picture


def _plain_jpeg(data: bytes, limits: DecodeLimits, side: int | None, fast: bool) -> DecodedPixels | None:
    """Return the picture of an undamaged upright JPEG within the limits; None for any other."""
    if not data.startswith(JPEG) or len(data) > limits.max_bytes:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        head = _header(data)
        if width * height > limits.max_pixels or _many_scans(data, width * height, limits):
            return None
        if colours not in COLOURS or SEVERAL_PICTURES in head or not _upright(data, head):
            return None
        scale = next(n for n in (8, 4, 2, 1) if n == 1 or (side and n <= min(width, height) // side))
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
        return DecodedPixels(simplejpeg.decode_jpeg(data, fastupsample=fast, **least), width, height)
    except ValueError:  # damaged, or of a kind that this library does not take
        return None


def _header(data: bytes) -> bytes:
    """Return the segments before the first scan; everything of a small file or where they do not follow one another."""
    place = len(b"\xff\xd8") if len(data) > SMALL else len(data)
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        if data[place : place + 2] == START_OF_SCAN:
            return data[:place]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data


def _many_scans(data: bytes, pixels: int, limits: DecodeLimits) -> bool:
    """Say whether the scans of a JPEG have too many pixels; counts them only where so many would fit."""
    allowed = SCAN_PIXELS * limits.max_pixels // max(1, pixels)
    return len(data) // LEAST_SCAN > allowed and data.count(START_OF_SCAN) > allowed


def _upright(data: bytes, head: bytes) -> bool:
    """Say whether no EXIF or XMP block of a JPEG turns it.

    Args:
        head: its segments before the first scan.
    """
    if not any(mark in head for mark in ORIENTED):
        return True
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return exif_orientation(image) == 1
    except Exception:  # noqa: BLE001 Pillow raises many classes; `decode` will say what is wrong
        return False
