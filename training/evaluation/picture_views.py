"""Pictures as models take them: of those trained here the middle of each, its short edge at the model's side.

Shapes: B pictures, S the side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.training.data.crops import Crop, central_square, cut_views
from granary.training.models.clip_transformers import THREADS


def central_views(files: Sequence[bytes], side: int) -> list[NDArray[np.uint8] | DecodeError]:
    """Decode files on threads: (S, S, 3) uint8 for each, or why it cannot be decoded."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(_central, side), files))


def opened_views(pictures: Sequence[Callable[[], Image.Image]], side: int) -> list[Tensor | None]:
    """Open pictures on threads: (3, S, S) uint8 for each, None for one that raises DecodeError."""

    def central(image: Image.Image) -> Tensor:
        return torch.from_numpy(central_square(np.array(image.convert("RGB")), side)).permute(2, 0, 1)

    return opened_by(pictures, central)


def opened_by(
    pictures: Sequence[Callable[[], Image.Image]], prepare: Callable[[Image.Image], Tensor]
) -> list[Tensor | None]:
    """Open and prepare pictures on threads: what `prepare` gives of each, None for one that raises DecodeError."""

    def opened(picture: Callable[[], Image.Image]) -> Tensor | None:
        try:
            return prepare(picture())
        except DecodeError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(opened, pictures))


def decoded_by(files: Sequence[bytes], prepare: Callable[[Image.Image], Tensor]) -> list[Tensor | DecodeError]:
    """Decode and prepare files on threads: what `prepare` gives of each, or why it cannot be decoded."""

    def decoded(file: bytes) -> Tensor | DecodeError:
        try:
            return prepare(decode(file, DecodeLimits()).image)
        except DecodeError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(decoded, files))


def _central(side: int, file: bytes) -> NDArray[np.uint8] | DecodeError:
    """Return the middle of a picture, (side, side, 3) uint8, or a DecodeError."""
    crop, unused = {"image": Crop(1, side, centre=True)}, np.random.default_rng(0)
    try:
        return cut_views(file, None, crop, unused, DecodeLimits())["image"][0]
    except DecodeError as error:
        return error
