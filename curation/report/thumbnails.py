"""Small pictures: tiles of a report under one byte budget, and contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits

SIDE = 128
BUDGET = 6_000_000


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data: URI with the size of its original, or the problem that left it empty."""

    source: str | None
    width: int = 0
    height: int = 0
    problem: str = ""


class Thumbnails:
    """Make thumbnails of originals until `budget` bytes of HTML are spent; then tiles stay empty."""

    def __init__(
        self, read: Callable[[str], bytes], limits: DecodeLimits, side: int = SIDE, budget: int = BUDGET
    ) -> None:
        self.read, self.limits, self.side, self.left = read, limits, side, budget
        self._made: dict[str, Thumbnail] = {}

    def __call__(self, uri: str) -> Thumbnail:
        """Return the thumbnail of the file at `uri`; every call is charged, as every use is written out."""
        if self.left <= 0:
            return Thumbnail(None, problem="no room left in this report")
        thumbnail = self._made.get(uri) or self._make(uri)
        self._made[uri] = thumbnail
        self.left -= len(thumbnail.source or "")
        return thumbnail

    def _make(self, uri: str) -> Thumbnail:
        try:
            decoded = decode(self.read(uri), self.limits, self.side)
        except DecodeError as error:
            return Thumbnail(None, problem=error.kind)
        except (OSError, KeyError) as error:
            return Thumbnail(None, problem=f"not readable: {type(error).__name__}")
        data = base64.b64encode(jpeg(shrink(decoded.image, self.side), quality=72)).decode()
        return Thumbnail(f"data:image/jpeg;base64,{data}", decoded.width, decoded.height)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Return an RGB copy whose longer side is at most `side` pixels, in the proportions of the original."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Return an RGB image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def contact_sheet(images: Sequence[Image.Image], columns: int, side: int = SIDE, gap: int = 4) -> bytes:
    """Lay images out row by row on white, each whole and centred in a square.

    Args:
        images: pictures of any mode and size; none gives one white square.
        columns: at least 1; fewer images than columns give a narrower sheet.
        side: of a square, in pixels.
        gap: between squares, in pixels.

    Returns:
        A JPEG file.

    Raises:
        ValueError: columns, side or gap make no sheet.
    """
    if columns < 1 or side < 1 or gap < 0:
        raise ValueError(f"columns {columns} and side {side} must be at least 1, gap {gap} at least 0")
    columns = min(columns, max(len(images), 1))
    rows = max(-(-len(images) // columns), 1)
    step = side + gap
    sheet = Image.new("RGB", (columns * step - gap, rows * step - gap), "white")
    for i, image in enumerate(images):
        small = shrink(image, side)
        left, top = i % columns * step, i // columns * step
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
    return jpeg(sheet, quality=85)
