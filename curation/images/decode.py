"""Decode untrusted image bytes to upright RGB, under limits checked from the header before any pixel.

Pillow does the decoding, for formats of an allow-list: none that starts a process (EPS), is a mere stub
(WMF, HDF5) or is slow and rare (FITS, BLP). Truncated files are errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from granary.curation.images.containers import PNG_SIGNATURE, can_read_heif, is_heif, without_text
from granary.curation.images.limits import DecodeLimits

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF"),  # first: Pillow asks the formats in this order, and a few of the others take long
    *("AVIF", "BMP", "CUR", "DCX", "DDS", "DIB", "ICNS", "ICO", "IM", "JPEG2000", "MSP", "PCX"),
    *("PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "XBM", "XPM"),
)
# These decoders hold the picture several times over, or take long: they get 1/2 or 1/4 of the pixels.
COSTLY_FORMATS = {"AVIF": 2, "HEIF": 2, "JPEG2000": 4, "WEBP": 2}
SLOW_PIXELS = 4_000_000  # for decoders written in Python, about a microsecond per pixel
SCAN_PIXELS = 10  # pixels of all scans of a progressive JPEG, in units of max_pixels
STRIP_PIXELS = 4_000_000
FAINT = 223  # nothing darker than this on white is no drawing to see: it is laid over black
LONG_TEXT = re.compile("MAX_TEXT_|text chunk")  # of what Pillow says of a PNG with long text chunks
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH, TIFF_BITS = 322, 323, 258


def quieten_pillow() -> None:
    """Keep what Pillow and its libtiff say about bad files off the terminal: it comes back as DecodeError.

    Once for the process, since warnings.catch_warnings is not safe with threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with contextlib.suppress(OSError, AttributeError):  # a Pillow with libtiff linked in has no such symbol
        libtiff = ctypes.CDLL(Image.core.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(libtiff, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)


quieten_pillow()


class DecodeError(Exception):
    """The bytes are not an image that granary takes.

    Args:
        kind: short class name, for tables.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.kind, str(self))


@dataclass(frozen=True)
class Decoded:
    """An upright picture.

    Args:
        image: RGB.
        width: pixels of the original, upright, before DCT scaling.
        height: likewise.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    frames: int


def decode(data: bytes, limits: DecodeLimits, side: int | None = None) -> Decoded:
    """Decode the first frame to RGB; alpha is laid over white or black, 16-bit and float greys are scaled.

    Args:
        data: the file.
        limits: on what is decoded.
        side: the short side the caller wants; a JPEG may then come out smaller (DCT scaling by 2, 4 or 8), never with a
            short side below it.

    Raises:
        DecodeError: and nothing else.
    """
    if len(data) > limits.max_bytes:
        raise DecodeError("TooManyBytes", f"{len(data)} bytes, the limit is {limits.max_bytes}")
    if not data:
        raise DecodeError("EmptyFile", "no bytes")
    try:
        return decode_bytes(data, limits, side)
    except ValueError as error:
        bare = without_text(data) if data.startswith(PNG_SIGNATURE) and LONG_TEXT.search(str(error)) else data
        if len(bare) == len(data):
            raise DecodeError(type(error).__name__, message_of(error)) from error
    return decode(bare, limits, side)


def decode_bytes(data: bytes, limits: DecodeLimits, side: int | None) -> Decoded:
    """Decode with Pillow. Raises DecodeError, or ValueError as it comes."""
    try:
        with Image.open(io.BytesIO(data), formats=formats_of(data)) as image:
            return decode_opened(image, data, limits, side)
    except (DecodeError, ValueError):
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("TooManyPixels", message_of(error)) from error
    except Exception as error:
        kind = "TruncatedImage" if "truncated" in str(error).lower() else type(error).__name__
        raise DecodeError(kind, message_of(error)) from error


def formats_of(data: bytes) -> tuple[str, ...]:
    """Return the formats that bytes may have. Raises DecodeError for HEIC without its plugin."""
    if not is_heif(data):
        return FORMATS
    if not can_read_heif():
        raise DecodeError("NoHeicPlugin", "pillow-heif is not installed; run: pip install 'granary-data[heic]'")
    return ("HEIF",)


def message_of(error: Exception) -> str:
    """Return a short message without memory addresses, which would differ from run to run."""
    text = "cannot identify image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return text.encode("utf-8", "replace").decode("utf-8")[:300] or type(error).__name__


def decode_opened(image: ImageFile.ImageFile, data: bytes, limits: DecodeLimits, side: int | None) -> Decoded:
    """Check the header, then decode."""
    file_format = str(image.format)
    check_header(image, file_format, data, limits)
    frames = count_frames(image, file_format, data, limits.max_frames)
    if frames > limits.max_frames:
        raise DecodeError("TooManyFrames", f"more than {limits.max_frames} frames")
    original = image.size
    scaled = side is not None and image.draft(None, (side, side)) is not None and image.size != original
    bits = bits_per_sample(image)
    image.load()
    check_pixels(image.size, limits.max_pixels)
    orientation = exif_orientation(image)
    upright = turned(to_rgb(image, bits), orientation)
    width, height = original if scaled else upright.size
    if scaled and orientation >= 5:
        width, height = height, width
    return Decoded(upright, width, height, file_format, frames)


def check_header(image: ImageFile.ImageFile, file_format: str, data: bytes, limits: DecodeLimits) -> None:
    """Refuse what would take too much memory or time. Raises DecodeError."""
    limit = limits.max_pixels // COSTLY_FORMATS.get(file_format, 1)
    if any(tile.codec_name in Image.DECODERS for tile in image.tile):
        limit = min(limit, SLOW_PIXELS)
    check_pixels(image.size, limit)
    pixels = image.width * image.height
    if file_format in ("JPEG", "MPO"):
        # In JPEG data FF DA is always a marker: entropy-coded FF is followed by 00.
        scans = data.count(b"\xff\xda")
        if scans * pixels > SCAN_PIXELS * limits.max_pixels:
            raise DecodeError("TooManyScans", f"{scans} scans of {pixels} pixels")
    if file_format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        check_pixels((tags.get(TIFF_TILE_WIDTH, 1), tags.get(TIFF_TILE_LENGTH, 1)), 4 * limits.max_pixels)


def check_pixels(size: tuple[int, int], limit: int) -> None:
    """Refuse a picture, or a tile of one, with too many pixels. Raises DecodeError."""
    width, height = size
    if width * height > limit:
        raise DecodeError("TooManyPixels", f"{width} x {height} pixels, the limit is {limit}")
    if width < 1 or height < 1:
        raise DecodeError("NoPixels", f"{width} x {height} pixels")


def bits_per_sample(image: ImageFile.ImageFile) -> int:
    """Return the bits of a grey sample that 16-bit storage may hold: 12 in some TIFF files."""
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,))
    return int(bits[0]) if isinstance(bits, tuple) and bits else 16


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where the tag is missing or the block is broken."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 a broken EXIF block raises many classes and does not spoil the picture
        return 1
    return value if value in TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture upright (EXIF 2.32, tag 0x0112)."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def to_rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """Convert any mode to RGB; what would be invisible over white, white drawings with alpha, is laid over black.

    Args:
        image: of any mode.
        bits: significant bits of 16-bit greys.
    """
    low, high = grey_range(image, bits) if image.mode[0] in "IF" else (0.0, 255.0)
    laid = laid_over("white", image, low, high)
    if not image.has_transparency_data or darkest(laid) <= FAINT:
        return laid
    del laid  # two whole pictures are enough, the one with alpha among them
    laid = laid_over("black", image, low, high)
    if laid.getbbox():
        return laid
    del laid
    return laid_over("white", image, low, high)  # nothing at all is as white as paper


def darkest(image: Image.Image) -> int:
    """Return the smallest value of any channel of an RGB picture."""
    return min(int(low) for low, _ in image.getextrema())  # type: ignore[misc]


def laid_over(ground: str, image: Image.Image, low: float, high: float) -> Image.Image:
    """Convert to RGB over a ground, large pictures strip by strip: a second whole picture in memory is enough."""
    if image.width * image.height <= STRIP_PIXELS:
        return strip_to_rgb(image, low, high, ground)
    result = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(strip_to_rgb(strip, low, high, ground), (0, top))
    return result


def strip_to_rgb(strip: Image.Image, low: float, high: float, ground: str = "white") -> Image.Image:
    """Convert a strip of any mode.

    Args:
        low: the grey that becomes 0 in modes wider than a byte.
        high: the one that becomes 255 there.
    """
    if strip.mode[0] in "IF":
        return wide_grey(strip, low, high).convert("RGB")
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    whole = strip.convert("LA") if strip.mode == "La" else strip
    layered = whole.convert("RGBA")
    below = Image.new("RGB", strip.size, ground)
    below.paste(layered.convert("RGB"), mask=layered.getchannel("A"))
    return below


def grey_range(image: Image.Image, bits: int) -> tuple[float, float]:
    """Return the greys that become black and white in the modes I;16, I and F.

    16-bit storage: 0 and 2^bits - 1. I: the same where all values fit in 16 bits; F: 0 and 1, or 0 and 255,
    whichever holds all values. Otherwise there is no agreed scale and the range found is used.
    """
    if image.mode.startswith("I;16"):
        return 0.0, 2.0**bits - 1
    low, high = np.inf, -np.inf
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    scales = (65535.0,) if image.mode == "I" else (1.0, 255.0)
    fitting = [scale for scale in scales if low >= 0 and high <= scale]
    return (0.0, fitting[0]) if fitting else (low, high)


def wide_grey(strip: Image.Image, low: float, high: float) -> Image.Image:
    """Return wide greys as L: round(255 (v - low) / (high - low)); NaN and a keyed-out grey are white."""
    values = np.asarray(strip).astype(np.float32)
    span = high - low if high > low else 1.0
    scaled = (np.clip(values, low, high) - low) * np.float32(255.0 / span)
    key = strip.info.get("transparency")
    hidden = np.isnan(values) | (values == key if isinstance(key, int) else False)
    return Image.fromarray(np.where(hidden, 255, np.rint(scaled)).astype(np.uint8))


def count_frames(image: ImageFile.ImageFile, file_format: str, data: bytes, limit: int) -> int:
    """Count frames without decoding them, at most to limit + 1."""
    if file_format == "GIF":
        return count_gif_frames(data, limit)
    if file_format == "TIFF":
        return count_tiff_pages(data, limit)
    named = file_format in ("AVIF", "DCX", "MPO", "PNG", "WEBP")  # formats that state it in the header
    return int(getattr(image, "n_frames", 1)) if named else 1


def count_gif_frames(data: bytes, limit: int) -> int:
    """Count the image blocks of a GIF up to limit + 1 or the first damage (GIF89a, section 20 on)."""
    frames = 0
    position = 13 + colour_table_bytes(data[10] if len(data) > 10 else 0)
    while frames <= limit and position + 1 < len(data):
        if data[position] == 0x2C:
            frames += 1
            position += 11 + colour_table_bytes(data[position + 9] if position + 9 < len(data) else 0)
        elif data[position] == 0x21:
            position += 2
        else:
            break
        while position < len(data) and data[position]:
            position += data[position] + 1
        position += 1
    return max(frames, 1)


def colour_table_bytes(flags: int) -> int:
    """Return the size of the colour table that a GIF flag byte announces."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def count_tiff_pages(data: bytes, limit: int) -> int:
    """Count the directories of a TIFF or BigTIFF up to limit + 1, a loop or damage (TIFF 6.0, section 2)."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    entries, pointer, width = ("Q", "Q", 20) if big else ("H", "I", 12)
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
        while offset and offset not in seen and len(seen) <= limit:
            (count,) = struct.unpack_from(order + entries, data, offset)
            seen.add(offset)
            (offset,) = struct.unpack_from(order + pointer, data, offset + struct.calcsize(entries) + count * width)
    except (struct.error, OverflowError):
        pass
    return max(len(seen), 1)
