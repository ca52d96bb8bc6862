"""Views of a picture: random or central crops, cut while the JPEG is decoded no larger than they need.

Boxes are drawn before decoding, from the size that the shard states, so that one decode at the smallest sufficient DCT
scale serves all crops of a sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

from granary.curation.images.limits import DecodeLimits
from granary.training.data.collate import Part
from granary.training.data.pixels import decode_pixels

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Crop:
    """A kind of view.

    Args:
        count: views of this kind in a sample.
        side: pixels of the square.
        scale: least and largest share of the picture's area.
        ratio: least and largest ratio of width to height.
        centre: draw nothing: the short edge becomes `side` and the middle is cut out.
        draws: uniform numbers that a view carries for the augmentation on the device.
        boxes: whether the boxes of the views are wanted too, as (left, top, right, bottom) in shares of the picture's
            width and height, before any flip.
    """

    count: int
    side: int
    scale: tuple[float, float] = (0.3, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    centre: bool = False
    draws: int = 16
    boxes: bool = False


class _Digest(ISeedSequence):
    """The first state of a generator, taken from a hash: a SeedSequence would hash it again, at five times the cost."""

    def __init__(self, digest: bytes) -> None:
        self.words = np.frombuffer(digest, "<u8").astype(np.uint64)

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[np.uint64]:
        """Return the four words that PCG64 asks for."""
        return self.words


def sample_generator(seed: int, epoch: int, identity: str) -> np.random.Generator:
    """Return the generator of a sample: it depends on (run seed, epoch, id), never on order, worker or batch."""
    state = _Digest(hashlib.blake2b(f"{seed}/{epoch}/{identity}".encode(), digest_size=32).digest())
    return np.random.Generator(np.random.PCG64(state))  # type: ignore[arg-type]


def random_box(width: int, height: int, crop: Crop, generator: np.random.Generator) -> Box:
    """Draw a box of random area and shape (Szegedy et al. 2015); after ten misses the largest central one allowed."""
    if crop.centre:
        return central_box(width, height, 1.0)
    low, high = math.log(crop.ratio[0]), math.log(crop.ratio[1])
    for _ in range(10):
        area, shape, left, top = generator.random(4).tolist()
        pixels = width * height * (crop.scale[0] + area * (crop.scale[1] - crop.scale[0]))
        ratio = math.exp(low + shape * (high - low))
        wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            x, y = int(left * (width - wide + 1)), int(top * (height - tall + 1))
            return x, y, x + wide, y + tall
    return central_box(width, height, min(max(width / height, crop.ratio[0]), crop.ratio[1]))


def central_box(width: int, height: int, ratio: float) -> Box:
    """Return the largest box in the middle with a width-to-height ratio."""
    wide, tall = min(width, height * ratio), min(height, width / ratio)
    left, top = (width - wide) / 2, (height - tall) / 2
    return left, top, left + wide, top + tall


def central_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the middle of a picture (H, W, 3), its short edge at `side`: (side, side, 3)."""
    return resized(_cut(pixels, central_box(pixels.shape[1], pixels.shape[0], 1.0), (1.0, 1.0)), side)


def needed_side(width: int, height: int, boxes: Mapping[str, list[Box]], crops: Mapping[str, Crop]) -> int:
    """Return the short side that the decoded picture needs so that no crop is enlarged by DCT scaling."""
    short, side = min(width, height), 1
    for name, drawn in boxes.items():
        smallest = min(min(right - left, bottom - top) for left, top, right, bottom in drawn)
        side = max(side, math.ceil(crops[name].side * short / max(smallest, 1.0)))
    return side


def cut_views(
    data: bytes,
    size: tuple[int, int] | None,
    crops: Mapping[str, Crop],
    generator: np.random.Generator,
    limits: DecodeLimits,
) -> dict[str, NDArray[Any]]:
    """Decode a picture and cut its views.

    Args:
        data: the file.
        size: width and height, upright, as the shard states them; None decodes in full.
        crops: the kinds of view by name.
        generator: of this sample.
        limits: of decoding.

    Returns:
        For each name (count, side, side, 3) uint8, and NAME_boxes (count, 4) float32 where they are wanted.

    Raises:
        DecodeError: the file is damaged or beyond the limits.
    """
    picture, fast = None, not any(crop.centre for crop in crops.values())
    if size is None:
        picture = decode_pixels(data, limits, fast=fast)
        size = picture.width, picture.height
    boxes = {name: [random_box(*size, crop, generator) for _ in range(crop.count)] for name, crop in crops.items()}
    pixels = (picture or decode_pixels(data, limits, needed_side(*size, boxes, crops), fast)).pixels
    scale = pixels.shape[1] / size[0], pixels.shape[0] / size[1]
    views: dict[str, NDArray[Any]] = {
        name: np.stack([resized(_cut(pixels, box, scale), crop.side) for box in boxes[name]])
        for name, crop in crops.items()
    }
    for name in (name for name, crop in crops.items() if crop.boxes):
        views[f"{name}_boxes"] = np.array(boxes[name], np.float32) / np.array([*size, *size], np.float32)
    return views


def views_of(row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits) -> Part:
    """Return the views of a picture and the numbers its augmentation on the device goes by. Raises DecodeError."""
    if not crops:
        return {}
    views: Part = dict(cut_views(row["data"], row["size"], crops, generator, limits))
    for name, crop in crops.items():
        views[f"{name}_draws"] = generator.random((crop.count, crop.draws), dtype=np.float32)
    return views


def _cut(pixels: NDArray[np.uint8], box: Box, scale: tuple[float, float]) -> NDArray[np.uint8]:
    """Return whole pixels of a picture, at least one.

    Args:
        scale: pixels (across, down) for each pixel of the box.
    """
    (height, width), (left, top, right, bottom) = pixels.shape[:2], box
    wide = min(max(1, round((right - left) * scale[0])), width)
    tall = min(max(1, round((bottom - top) * scale[1])), height)
    x, y = min(round(left * scale[0]), width - wide), min(round(top * scale[1]), height - tall)
    return pixels[y : y + tall, x : x + wide]


def resized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return (H, W, 3) pixels at (side, side, 3), bicubic with antialiasing: Pillow's filter, several times faster."""
    if pixels.shape[:2] == (side, side):
        return pixels
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # channels last in memory, which is the fast way
    return F.interpolate(planes, (side, side), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
