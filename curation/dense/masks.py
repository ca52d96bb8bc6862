"""The pixels of a mask: decoded from what an annotation holds, checked against what it states, written for a shard."""

from __future__ import annotations

import base64
import dataclasses
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.curation.dense import rle
from granary.curation.dense.polygons import rasterised
from granary.curation.dense.recipe import MaskForm
from granary.curation.dense.rle import Lengths
from granary.curation.dense.schema import MaskRow, StoredPixels
from granary.curation.dense.tree import Box, Mask, Png, Polygons, Problem, RunLengths

BLOCKS = 8  # of 16 MiB at most: Pillow reuses them for the next picture, which halves what decoding one costs
Image.core.set_blocks_max(BLOCKS)


def decode_pixels(mask: Mask, width: int, height: int, relative: bool = False) -> tuple[Mask, list[Problem]]:
    """Decode the pixels of a mask; box and area are those of the pixels, whatever was stated.

    Args:
        mask: as read.
        width, height: of the image.
        relative: whether a box without pixels is in thousandths of them.

    Returns:
        The mask with `box`, `area` and, unless it is a mere box, `lengths`; a problem where it was stated otherwise.

    Raises:
        ValueError: it has no pixels that can be read, none at all, or another size than the image.
    """
    if mask.pixels is None:
        box = _clipped(mask.box, width, height, relative)
        return dataclasses.replace(mask, box=box, area=(box[2] - box[0]) * (box[3] - box[1])), []
    lengths = _decoded(mask.pixels, width, height)
    area, bounds = rle.area(lengths), rle.bounds(lengths, height)
    if bounds is None:
        raise ValueError("the mask is empty")
    stated = [("bounds", mask.box, bounds), ("area", mask.area, area)]
    problems = [
        Problem(mask.key, "MaskStatement", f"{name} is stated as {value}; the pixels have {actual}, which is used")
        for name, value, actual in stated
        if value is not None and value != actual
    ]
    return dataclasses.replace(mask, pixels=None, box=bounds, area=area, lengths=lengths), problems


def _clipped(box: Box | None, width: int, height: int, relative: bool) -> Box:
    if box is None:
        raise ValueError("there is neither a mask nor a box")
    x0, y0, x1, y1 = box
    if relative:  # cells of a thousandth: the pixels they touch
        x0, y0, x1, y1 = x0 * width // 1000, y0 * height // 1000, -(-x1 * width // 1000), -(-y1 * height // 1000)
    clipped = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise ValueError(f"the box {list(box)} holds no pixel of an image of {width} x {height}")
    return clipped


def _decoded(pixels: Png | RunLengths | Polygons, width: int, height: int) -> Lengths:
    """Return the run lengths of a mask, none of them zero but the first."""
    if isinstance(pixels, Png):
        return rle.packed_runs(_packed(pixels.data, width, height), height, width)
    if isinstance(pixels, Polygons):
        return rasterised(pixels.outlines, height, width)
    lengths, tall, wide = rle.read(pixels.code)
    _check_size(wide, tall, width, height)
    return rle.between(np.cumsum(lengths[:-1]), height * width)


def _check_size(wide: int, tall: int, width: int, height: int) -> None:
    if (wide, tall) != (width, height):
        raise ValueError(f"the mask is {wide} x {tall}, the image {width} x {height}")


def _packed(text: object, width: int, height: int) -> NDArray[np.uint8]:
    """Decode base64 of a PNG of any mode to eight pixels a byte; what is not black is set."""
    if not isinstance(text, str):
        raise ValueError(f"the mask is not base64 but a {type(text).__name__}")
    try:
        data = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise ValueError(f"the mask is not base64: {error}") from error
    rows = _bilevel(data, width, height)
    if rows is not None:
        return rows
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            _check_size(*image.size, width, height)  # before any pixel is decoded
            image.load()
            return np.packbits(_set(image), axis=1)
    except ValueError:
        raise
    except Exception as error:  # broken files raise many classes
        raise ValueError(f"the mask is no PNG: {type(error).__name__}: {_message(error)}") from error


def _bilevel(data: bytes, width: int, height: int) -> NDArray[np.uint8] | None:
    """Decode a PNG of 1-bit greys with one chunk of pixels, as Pillow writes them; None for others and broken ones.

    Its rows are those of a picture of 8-bit greys an eighth as wide, filters and all (PNG, section 9): decoded as such
    they stay packed, in a third of the time.
    """
    pixels = data[41:-16]
    header = _header(width, height) + struct.pack(">I4s", len(pixels), b"IDAT")
    if data[:41] != header or data[-16:-12] != struct.pack(">I", zlib.crc32(data[37:-16])):
        return None
    try:
        image = Image.frombytes("L", (-(-width // 8), height), pixels, "zip", "L", 0)
    except ValueError:
        return None
    rows = np.array(image)
    rows[:, -1] &= 0xFF << -width % 8 & 0xFF  # what stands behind the last pixel
    return rows


def _header(width: int, height: int) -> bytes:
    """Return the head of a PNG of 1-bit greys that is not interlaced, up to its first chunk."""
    header = struct.pack(">4s2I5B", b"IHDR", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header))


def _set(image: Image.Image) -> NDArray[np.bool_]:
    """Return (h, w) bool, where a picture is not black; alpha does not count."""
    mode = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    values = np.asarray(image.convert("RGB") if mode == "P" else image.convert(mode) if mode != image.mode else image)
    return (values != 0).any(axis=2) if values.ndim == 3 else values != 0


def _message(error: Exception) -> str:
    return "cannot identify image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)[:150]


def stored(mask: Mask, width: int, height: int, form: MaskForm) -> StoredPixels:
    """Return the pixels of a mask as a shard has them: run lengths ("rle") or a 1-bit PNG ("png")."""
    size = [height, width]
    if mask.lengths is None:
        return {"size": size, "counts": None, "png": None}
    if form == "rle":
        return {"size": size, "counts": rle.compress(mask.lengths), "png": None}
    file = io.BytesIO()
    Image.fromarray(rle.mask_of(mask.lengths, height, width)).save(file, "PNG")
    return {"size": size, "counts": None, "png": file.getvalue()}


def pixels_of(size: Sequence[int], counts: str | None, png: bytes | None) -> NDArray[np.bool_] | None:
    """Return the (height, width) bool mask of what a shard holds; None for a box."""
    if counts is not None:
        return rle.mask_of(rle.decompress(counts), size[0], size[1])
    if png is not None:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            return np.asarray(image) != 0
    return None


def region_of(mask: MaskRow) -> NDArray[np.bool_]:
    """Return the (height, width) bool pixels of a mask of a shard, those of its box where it has none of its own."""
    pixels = pixels_of(mask["size"], mask["counts"], mask["png"])
    if pixels is None:
        x0, y0, x1, y1 = mask["box"]
        pixels = np.zeros(mask["size"], bool)
        pixels[y0:y1, x0:x1] = True
    return pixels
