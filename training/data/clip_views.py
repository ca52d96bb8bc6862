"""Pictures of crops as the image processor of a CLIP of `transformers` cuts them, made in the workers of the loader."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

from PIL import Image

from granary.curation.images.limits import DecodeLimits
from granary.training.data.collate import Part
from granary.training.data.pairs import Originals, Place, picture_of
from granary.training.data.processed_views import ProcessedViews


@dataclass(frozen=True)
class ClipViews(ProcessedViews):
    """Makes the view of a row of the config `pairs`."""

    @cached_property
    def originals(self) -> dict[str, Originals]:
        """Where whole images are, by dataset."""
        return {}

    def opened(self, row: Part, limits: DecodeLimits) -> Image.Image:
        """Return the picture of a row, where it must be, cut out of the whole image. Raises DecodeError."""
        originals = self.originals.setdefault(row["path"], Originals(row["path"]))
        return picture_of(row["data"], cast(Place, row), originals).image(limits)
