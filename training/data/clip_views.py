"""Pictures of crops as the image processor of a CLIP of `transformers` cuts them, made in the workers of the loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from granary.curation.encoders.inference import workable
from granary.curation.images.limits import DecodeLimits
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.pairs import Originals, Place, picture_of
from granary.training.models.clip_transformers import load_processor

if TYPE_CHECKING:  # takes seconds to import
    from transformers import BaseImageProcessor


@dataclass(frozen=True)
class ClipViews:
    """Makes the view of a row of the config `pairs`: `granary.training.data.reads.Views`.

    Args:
        clip: a folder saved by transformers, or hf:ID.
    """

    clip: str

    @cached_property
    def processor(self) -> BaseImageProcessor:
        """The image processor, loaded once in each process."""
        return load_processor(self.clip)

    @cached_property
    def originals(self) -> dict[str, Originals]:
        """Where whole images are, by dataset."""
        return {}

    def __call__(
        self, row: Part, generator: np.random.Generator, crops: Mapping[str, Crop], limits: DecodeLimits
    ) -> Part:
        """Return the picture, resized and cut but not normalised, as (1, side, side, 3) uint8. Raises DecodeError."""
        originals = self.originals.setdefault(row["path"], Originals(row["path"]))
        picture = workable(picture_of(row["data"], cast(Place, row), originals).image(limits), aspect=16)
        pixels = self.processor([picture], do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
        return {name: np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) for name in crops}
