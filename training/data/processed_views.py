"""Pictures as an image processor of `transformers` cuts them, made in the workers of the loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from granary.curation.encoders.inference import workable
from granary.curation.images.decode import decode
from granary.curation.images.limits import DecodeLimits
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.models.clip_transformers import load_processor

if TYPE_CHECKING:  # takes seconds to import
    from transformers import BaseImageProcessor


@dataclass(frozen=True)
class ProcessedViews:
    """Makes the view of a row: `granary.training.data.reads.Views`.

    Args:
        model: whose processor it is: a folder saved by transformers, or hf:ID.
    """

    model: str

    @cached_property
    def processor(self) -> BaseImageProcessor:
        """The image processor, loaded once in each process."""
        return load_processor(self.model)

    def opened(self, row: Part, limits: DecodeLimits) -> Image.Image:
        """Return the picture of a row. Raises DecodeError."""
        return decode(row["data"], limits).image

    def __call__(
        self, row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits
    ) -> Part:
        """Return the picture, resized and cut but not normalised, as (1, side, side, 3) uint8. Raises DecodeError."""
        picture = workable(self.opened(row, limits), aspect=16)
        pixels = self.processor([picture], do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        return {name: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) for name in crops}
