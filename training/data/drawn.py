"""Some rows of an opened dataset: drawn by hash of their ids, or those whose ids are not among some others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from granary.curation.store.sampling import bounded_sample
from granary.training.data import shards


def ids_of(dataset: shards.Dataset) -> NDArray[np.str_]:
    """Return the id of every row in order, (n,)."""
    read = (shards.read_group(group, ["id"])["id"] for group in dataset.groups)
    return np.concatenate([column.to_numpy(zero_copy_only=False).astype(str) for column in read])


def drawn(dataset: shards.Dataset, count: int, seed: int, purpose: str) -> shards.Dataset:
    """Return so many rows of a dataset in its order, whatever that is; all where there are no more.

    Args:
        dataset: opened.
        count: rows.
        seed, purpose: name the draw, see `curation.store.sampling`.
    """
    if count >= dataset.count:
        return dataset
    names = [f"{name}#{row}" for name, row in zip(*_numbered(ids_of(dataset)), strict=True)]
    kept = np.zeros(dataset.count, bool)
    kept[bounded_sample(names, count, seed, purpose)] = True
    return some(dataset, kept)


def without(dataset: shards.Dataset, ids: Collection[str]) -> shards.Dataset:
    """Return a dataset without the rows of some ids."""
    return some(dataset, ~np.isin(ids_of(dataset), sorted(ids)))


def some(dataset: shards.Dataset, kept: NDArray[np.bool_]) -> shards.Dataset:
    """Return the rows of a dataset that are kept, (n,), in its order; there may be none."""
    groups, start = list[shards.RowGroup](), 0
    for group in dataset.groups:
        inside = np.flatnonzero(kept[group.start : group.start + group.rows])
        chosen = inside if group.chosen is None else group.chosen[inside]
        if len(inside):
            groups.append(group._replace(rows=len(inside), chosen=chosen, start=start))
        start += len(inside)
    return replace(dataset, groups=groups)


def _numbered(ids: NDArray[np.str_]) -> tuple[list[str], list[int]]:
    """Return ids, and for each how many equal ones come before it."""
    seen: dict[str, int] = {}
    turns = []
    for name in ids.tolist():
        seen[name] = seen.get(name, -1) + 1
        turns.append(seen[name])
    return ids.tolist(), turns
