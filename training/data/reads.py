"""What a method reads of every row of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from granary.curation.images.limits import DecodeLimits
from granary.training.data.collate import Part
from granary.training.data.crops import Crop, views_of
from granary.training.data.ordering import PLAIN, Ordering

Views = Callable[[Part, np.random.Generator, Mapping[str, Crop], DecodeLimits], Part]


@dataclass(frozen=True)
class Reads:
    """What a method reads of every row.

    Args:
        columns: image, label, captions, or any column of the shards, which come as `columns.values_of` gives them:
            numbers as tensors, everything else as lists of Python objects. Without image no picture is read; images
            are several pictures of a row, or its one.
        categories: further columns whose values are classes, as those of label are: int64, -1 for none.
        config: folder of the dataset that the shards lie in.
        views: makes the views of a row, in a worker: (row, generator of the sample, crops, limits of decoding) ->
            for every crop NAME (count, side, side, 3) uint8, and whatever else as arrays. It raises DecodeError. The
            row has `data`, the bytes of the picture (`pictures`, those of several), `size`, `key`, `uri`, `path`, that
            of the dataset, and the columns. It is sent to workers, so it must be a function or an object that can be
            pickled.
        order: of the samples, where the recipe names none.
    """

    columns: Sequence[str] = ("image",)
    categories: Sequence[str] = ()
    config: str = "data"
    views: Views = views_of
    order: Ordering = PLAIN

    @property
    def all_categories(self) -> list[str]:
        """The columns whose values are classes: label, where it is read, and the others."""
        label = ["label"] if "label" in self.columns else []
        return list(dict.fromkeys([*label, *self.categories]))

    @property
    def all_columns(self) -> list[str]:
        """The columns that must be there."""
        return list(dict.fromkeys([*self.columns, *self.categories]))
