"""Frames: decode what a renderer sent, and refuse what cannot be the picture of its scene."""

from __future__ import annotations

import dataclasses
import io
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from granary.synth.pug.renderer.connection import RenderError

Colour = tuple[int, int, int]
MODES = ("lit", "mask", "depth", "normals")
PNG_END = b"IEND\xaeB`\x82"
COMMANDS = {
    "lit": "vget /camera/0/lit png",
    "mask": "vget /camera/0/object_mask png",
    "depth": "vget /camera/0/depth npy",
    "normals": "vget /camera/0/normal png",
}
BMP = struct.Struct("<2s8xIIiiHH24x")  # magic, start of the pixels, size of the head, width, height, planes, depth


class InvalidFrame(RenderError):
    """A frame that is not a picture of the scene: quarantined. `picture` is it, as PNG, where there is one."""

    def __init__(self, message: str, picture: bytes = b"") -> None:
        super().__init__(message)
        self.picture = picture


class NotDecodable(InvalidFrame):
    """Not a PNG or NumPy file of the size that was asked for."""


class Blank(InvalidFrame):
    """The picture has one tone."""


class NotVisible(InvalidFrame):
    """A character is not in the mask."""


class NotShown(InvalidFrame):
    """A character is in the mask, and the picture is the same without it."""


class UnknownColour(InvalidFrame):
    """The mask shows a colour that no object has: of another scene, or blended."""


class NotFinite(InvalidFrame):
    """The depth holds NaN or infinity."""


class WrongPose(InvalidFrame):
    """The renderer reads back another pose than was set."""


class Unsettled(InvalidFrame):
    """Successive pictures never agreed, or stayed that of the scene before."""


class NotRepeatable(InvalidFrame):
    """The same row, rendered again, gave another picture."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """What was captured of one scene in one tick.

    Args:
        lit: (h, w, 3) uint8.
        mask: (h, w) uint8: 0 background, 1 + slot of a character.
        depth: (h, w) float32, planar, cm; None when not asked for.
        normals: (h, w, 3) uint8; None when not asked for.
    """

    lit: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    depth: NDArray[np.float32] | None = None
    normals: NDArray[np.uint8] | None = None


def picture_of(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Decode a PNG, or UnrealCV's BMP, of a known size to (h, w, 3) uint8, without its alpha; raises NotDecodable."""
    if data.startswith(b"BM"):
        return _bmp_pixels(data, width, height)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height):  # before any pixel is decoded
                raise NotDecodable(f"a picture of {image.size[0]} x {image.size[1]}, not {width} x {height} pixels")
            if not data.endswith(PNG_END):  # Pillow may take one that is cut short after its last pixel
                raise NotDecodable(f"a PNG of {len(data)} bytes that is cut short")
            image.verify()  # the checksums of its chunks, which decoding alone passes over
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[:, :, :3])
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise NotDecodable(f"not a PNG: {error}; it begins with {data[:24]!r}") from None


def _bmp_pixels(data: bytes, width: int, height: int) -> NDArray[np.uint8]:
    """Return the pixels of a BMP as UnrealCV writes it: 32-bit BGRA, rows from the top whatever its height's sign."""
    size = BMP.size + 4 * width * height
    header = BMP.unpack(data[: BMP.size].ljust(BMP.size, b"\0"))
    if len(data) != size or (*header[1:4], abs(header[4]), *header[5:]) != (BMP.size, 40, width, height, 1, 32):
        raise NotDecodable(f"a BMP of {len(data)} bytes with the head {header}, not of {width} x {height} pixels")
    pixels = np.frombuffer(data, np.uint8, offset=BMP.size).reshape(height, width, 4)
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def depth_of(data: bytes, width: int, height: int) -> NDArray[np.float32]:
    """Decode a .npy file of (h, w) floats; raises NotDecodable."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        if shape != (height, width) or kind.kind != "f":  # before memory is set aside for it
            raise NotDecodable(f"a depth of {kind} {shape}, not floats of ({height}, {width})")
        file.seek(0)
        return np.asarray(np.load(file, allow_pickle=False), np.float32)
    except (ValueError, EOFError, OSError, SyntaxError, tokenize.TokenError) as error:
        raise NotDecodable(f"not a NumPy file: {error}; it begins with {data[:24]!r}") from None


def nearness(depth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture of a depth: its inverse, from 0 where it is farthest to 255 where it is nearest.

    Args:
        depth: (h, w) float32, cm; what is nearer than a centimetre counts as one.
    """
    inverse = 1 / np.maximum(depth, 1)
    farthest, nearest = inverse.min(), inverse.max()
    scale = 255 / (nearest - farthest) if nearest > farthest else 0.0
    return ((inverse - farthest) * scale).round().astype(np.uint8)


def packed(picture: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return RGB as one number for each pixel."""
    red, green, blue = (picture[..., channel].astype(np.uint32) for channel in range(3))
    return red << np.uint32(16) | green << np.uint32(8) | blue


def indexed_mask(picture: NDArray[np.uint8], actors: Mapping[int, Colour], others: set[Colour]) -> NDArray[np.uint8]:
    """Turn a mask of colours into one of indices, 1 + slot.

    Args:
        picture: (h, w, 3) uint8.
        actors: the colour of each slot's character.
        others: colours of everything else in the world, and of what is no object.

    Raises:
        UnknownColour, NotVisible: the mask is not of this scene.
    """
    codes = packed(picture)
    known = np.zeros(codes.shape, bool)
    for colour in (*actors.values(), *others):
        known |= codes == _code(colour)
    if not known.all():
        strange = codes[~known]
        raise UnknownColour(f"{strange.size} pixels of the mask, such as #{int(strange[0]):06x}, are of no object")
    mask = np.zeros(codes.shape, np.uint8)
    for slot, colour in actors.items():
        mine = codes == _code(colour)
        if not mine.any():
            raise NotVisible(f"character {slot + 1} is not in the mask")
        mask[mine] = 1 + slot
    return mask


def _code(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def check_frame(frame: Frame, blank: float) -> None:
    """Raise Blank or NotFinite when the pixels cannot be right; `blank` is the least standard deviation."""
    grey = frame.lit.astype(np.float32) @ np.full(3, 1 / 3, np.float32)
    if grey.std() < blank:
        raise Blank(f"the grey levels have a standard deviation of {grey.std():.2f}, below {blank:g}")
    if frame.depth is not None and not np.isfinite(frame.depth).all():
        raise NotFinite(f"{int((~np.isfinite(frame.depth)).sum())} pixels of the depth are not finite")


def difference(one: Frame, other: Frame) -> float:
    """Return the mean absolute difference of two pictures; infinite when masks differ in more than a thousandth."""
    if (one.mask != other.mask).mean() > 1e-3:
        return float("inf")
    return float(np.abs(one.lit.astype(np.int16) - other.lit).mean())


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8], seen: NDArray[np.bool_]) -> float:
    """Return the mean absolute difference of two (h, w, 3) pictures over some (h, w) pixels."""
    return float(np.abs(one[seen].astype(np.int16) - other[seen]).mean())


def boxes(mask: NDArray[np.uint8]) -> dict[int, tuple[tuple[int, int, int, int], int]]:
    """Return for each slot in a mask its box (left, top, right, bottom; right and bottom exclusive) and its pixels."""
    boxes_of = {}
    for index in np.unique(mask[mask > 0]).tolist():
        rows, columns = np.nonzero(mask == index)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        boxes_of[index - 1] = (box, len(rows))
    return boxes_of


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (h, w) or (h, w, 3) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=2)  # 6 takes almost three times as long for 9 % less
    return buffer.getvalue()


def npz(**arrays: NDArray[Any]) -> bytes:
    """Return arrays as a compressed NumPy file (.npz), the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:  # dated 1980
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()
