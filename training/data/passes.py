"""One pass over a dataset in its order, each row once: what evaluation and frozen features read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from joblib import cpu_count
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.collate import Dead, Part, stacked
from granary.training.data.crops import Crop, sample_generator, views_of
from granary.training.data.loader import read_row, stored_columns
from granary.training.data.reads import Views

MANY = 4096  # pictures that are worth starting processes for


def in_order(
    dataset: shards.Dataset,
    crop: Crop,
    columns: Sequence[str] = ("image",),
    classes: Sequence[str] = (),
    batch: int = 64,
    limit: int | None = None,
    seed: int = 0,
    views: Views = views_of,
) -> Iterator[Part]:
    """Yield every row of a dataset once, in order, in batches: for evaluation.

    Args:
        dataset: of `open_dataset`.
        crop: the only view, named "image"; `centre=True` draws nothing.
        columns, classes: as in `BatchPlan`.
        batch: rows at a time; what cannot be decoded is left out, and listed in `dead`.
        limit: rows at most.
        seed: of random crops.
        views: makes the view "image" of a row, see `Reads`.
    """
    categories = {"label": dict.fromkeys(classes)} if "label" in columns else {}
    left = dataset.count if limit is None else min(limit, dataset.count)
    for group in dataset.groups:
        if not left:
            return
        batch_of_group = shards.read_group(group, stored_columns(dataset, columns), categories)
        rows = shards.GroupRows(batch_of_group, categories)
        taken = min(rows.count, left)
        for start in range(0, taken, batch):
            part = [
                {**read_row(rows, row, columns), "row": np.int64(group.start + row)}
                for row in range(start, min(start + batch, taken))
            ]
            yield _in_part(part, crop, seed, views)
        left -= taken


def _in_part(rows: Sequence[Part], crop: Crop, seed: int, views: Views) -> Part:
    """Return rows as a part, without those that cannot be decoded."""
    samples, dead = [], list[Dead]()
    for row in rows:
        try:
            made = views(row, sample_generator(seed, 0, row["key"]), {"image": crop}, DecodeLimits())
            samples.append((row, made))
        except DecodeError as error:
            dead.append((row["uri"], error.kind, str(error)))
    empty: Part = {"image": torch.empty(0, 1, crop.side, crop.side, 3, dtype=torch.uint8), "id": []}
    return {**(stacked(samples) if samples else empty), "dead": dead}


def undecoded(dataset: shards.Dataset, columns: Sequence[str] = ("image",), limit: int | None = None) -> Iterator[Part]:
    """Yield every row of a dataset once, in order, as `read_row` gives it: pictures as the bytes of their files.

    Args:
        dataset: of `open_dataset`.
        columns: what is read; those that the dataset lacks are None.
        limit: rows at most.
    """
    left = dataset.count if limit is None else limit
    for group in dataset.groups:
        if left <= 0:
            return
        rows = shards.GroupRows(shards.read_group(group, stored_columns(dataset, columns)))
        yield from (read_row(rows, row, columns) for row in range(min(rows.count, left)))
        left -= rows.count


class _Pieces(TorchDataset[Part]):
    """The row groups of a dataset, decoded: a map-style dataset, for worker processes."""

    def __init__(
        self,
        dataset: shards.Dataset,
        crop: Crop,
        columns: Sequence[str],
        classes: Sequence[str],
        limit: int,
        seed: int,
        views: Views,
    ) -> None:
        self.dataset, self.arguments, self.seed, self.views = dataset, (crop, columns, classes), seed, views
        self.parts: list[tuple[shards.RowGroup, int]] = []
        for group in dataset.groups:
            if limit > 0:
                self.parts.append((group, min(group.rows, limit)))
                limit -= group.rows

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Part:
        group, rows = self.parts[number]
        alone = replace(self.dataset, groups=[group])
        return next(in_order(alone, *self.arguments, batch=rows, limit=rows, seed=self.seed, views=self.views))


def pieces(
    dataset: shards.Dataset,
    crop: Crop,
    columns: Sequence[str] = ("image",),
    classes: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    views: Views = views_of,
) -> Iterator[Part]:
    """Yield the decoded row groups of a dataset in order; large datasets are decoded by worker processes.

    Args:
        dataset, crop, columns, classes, limit, seed, views: as in `in_order`.
    """
    rows = min(dataset.count, limit or dataset.count)
    workers = min(8, int(cpu_count())) if rows >= MANY else 0
    context = ("fork" if storage.is_local(dataset.path) else "forkserver") if workers else None
    source = _Pieces(dataset, crop, columns, classes, rows, seed, views)
    yield from DataLoader(source, batch_size=None, num_workers=workers, multiprocessing_context=context)
