"""Pictures and arrays as UnrealCV sends them."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image


def encode(picture: np.ndarray, kind: str) -> bytes:
    """Encode (h, w, 4) uint8 RGBA as "png" or as UnrealCV's "bmp": 32-bit BGRA, rows from the top."""
    if kind == "bmp":
        return _bmp(picture)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def encode_npy(values: np.ndarray) -> bytes:
    """Encode an array as version 1 of NumPy's format: little-endian float32 in C order."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(values, dtype="<f4"), version=(1, 0))
    return stream.getvalue()


def opaque(picture: np.ndarray) -> np.ndarray:
    """Add an alpha channel of 255 to (h, w, 3) uint8."""
    return np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])


def _bmp(picture: np.ndarray) -> bytes:
    height, width = picture.shape[:2]
    body = np.ascontiguousarray(picture[..., [2, 1, 0, 3]]).tobytes()
    head = struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, width, -height, 1, 32, 0, len(body), 0, 0, 0, 0)
    return head + info + body
