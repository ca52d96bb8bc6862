"""What a training on clips must know of all of them: the classes that are told, the mean and deviation of latents."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.store.schema import NO_CLASS, natural
from granary.training.data.clip_windows import Latents, WindowViews, latents_of
from granary.training.data.loader import BatchPlan
from granary.training.data.passes import undecoded
from granary.training.data.shards import Dataset


class Spread(NamedTuple):
    """Mean and standard deviation of each number of a latent, (d,) float32; of one that never changes 1."""

    mean: Tensor
    std: Tensor


def classes_of_clips(datasets: Sequence[Dataset], fields: Sequence[str]) -> dict[str, list[str]]:
    """Return the sorted values of fields of clips.

    Args:
        datasets: with a column clips.
        fields: step, or verb and noun, or others.

    Raises:
        UserError: a field has fewer than two.
    """
    values: dict[str, set[str]] = {name: set() for name in fields}
    for dataset in datasets:
        for row in undecoded(dataset, ["clips"]):
            for clip in row["clips"] or []:
                for name in fields:
                    values[name].add(str(clip.get(name) or ""))
    classes = {name: sorted(some - set(NO_CLASS), key=natural) for name, some in values.items()}
    for name, some in classes.items():
        if len(some) < 2:
            raise UserError(
                f"options.fields: the clips of {datasets[0].path} have {len(some)} values of {name!r}; name a field "
                "of clips with two or more"
            )
    return classes


def dimension_of(datasets: Sequence[Dataset], column: str) -> int:
    """Return d of the latents in a column, by the first that can be read. Raises UserError where there are none."""
    why = "there is no row"
    for dataset in datasets:
        for row in undecoded(dataset, ["clips", column]):
            try:
                return latents_of(row[column], len(row["clips"] or [])).shape[2]
            except DecodeError as error:
                why = str(error)
    raise UserError(f"options.latents: the column {column!r} of {datasets[0].path} has no latents of clips: {why}")


def spread_of_latents(plan: BatchPlan) -> Spread:
    """Return mean and deviation of the latents of all clips of the data, as batches will have them.

    Raises:
        UserError: two rows have latents of another size.
    """
    assert isinstance(plan.views, WindowViews)
    count, total, squares = 0, np.zeros(()), np.zeros(())
    shape: tuple[int, ...] | None = None
    for latents in _every(plan, plan.views):
        if shape not in (None, latents.shape[1:]):
            raise UserError(f"options.latents: clips have latents of {shape} and of {latents.shape[1:]} numbers")
        shape = latents.shape[1:]
        flat = latents.reshape(-1, latents.shape[2]).astype(np.float64)
        count, total, squares = count + len(flat), total + flat.sum(axis=0), squares + (flat**2).sum(axis=0)
    if not count:
        raise UserError(f"data: no clip of {plan.datasets[0].path} has a latent")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std = np.where(std > 1e-6, std, 1.0)
    return Spread(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32)))


def _every(plan: BatchPlan, views: WindowViews) -> Iterator[Latents]:
    """Yield the latents of the clips of each row that has them."""
    number = 0
    for dataset in plan.datasets:
        for row in undecoded(dataset, plan.columns):
            with contextlib.suppress(DecodeError):  # it is a dead letter of the training
                yield views.latents({**row, "row": number})
            number += 1
