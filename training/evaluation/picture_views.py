"""Pictures as models trained here take them: the middle of each, its short edge at the model's side.

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

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.crops import Crop, central_square, cut_views
from granary.training.models.clip_transformers import THREADS


def central_views(files: Sequence[bytes], side: int) -> list[NDArray[np.uint8] | DecodeError]:
    """Decode files on threads: (S, S, 3) uint8 for each, or why it cannot be decoded."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(partial(_central, side), files))


def opened_views(pictures: Sequence[Callable[[], Image.Image]], side: int) -> list[Tensor | None]:
    """Open pictures on threads: (3, S, S) uint8 for each, None for one that raises DecodeError."""

    def prepare(picture: Callable[[], Image.Image]) -> Tensor | None:
        try:
            view = central_square(np.array(picture().convert("RGB")), side)
        except DecodeError:
            return None
        return torch.from_numpy(view).permute(2, 0, 1)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(prepare, pictures))


def _central(side: int, file: bytes) -> NDArray[np.uint8] | DecodeError:
    """Return the middle of a picture, (side, side, 3) uint8, or a DecodeError."""
    crop, unused = {"image": Crop(1, side, centre=True)}, np.random.default_rng(0)
    try:
        return cut_views(file, None, crop, unused, DecodeLimits())["image"][0]
    except DecodeError as error:
        return error
