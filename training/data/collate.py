"""A part of a batch: some samples, column by column, as workers make it, hand it over and put it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

Part = dict[str, Any]  # column -> a tensor, or a list of as many entries: which columns there are is the method's wish
# of a row: what its views are made of and named by
FOR_VIEWS = ("data", "pictures", "size", "key", "uri", "path", "video")
Dead = tuple[str, str, str]  # uri, error, message


def stacked(samples: Sequence[tuple[Part, Part]]) -> Part:
    """Return rows, as `read_row` gives them, and their views as one part."""
    part: Part = {name: _column([views[name] for _, views in samples]) for name in samples[0][1]}
    part["id"] = [row["key"] for row, _ in samples]
    return part | {name: _column([row[name] for row, _ in samples]) for name in samples[0][0] if name not in FOR_VIEWS}


def _column(values: Sequence[Any]) -> torch.Tensor | list[Any]:
    """Return numbers and arrays as a tensor, anything else as it is."""
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.from_numpy(np.array(values)) if isinstance(values[0], np.generic) else list(values)


def divided(run: Part) -> Iterator[Part]:
    """Yield what `Parts` made, step by step."""
    size = len(run["id"]) // len(run["dead"])
    entries = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in run.items()}
    for step, dead in enumerate(entries.pop("dead")):
        yield {**{name: value[step * size : (step + 1) * size] for name, value in entries.items()}, "dead": dead}


def in_pieces(batch: Part, pieces: int) -> Iterator[Part]:
    """Yield a batch in equal pieces: tensors and lists along their first axis."""
    count = len(batch["id"]) // pieces
    for number in range(pieces):
        yield {name: value[number * count : (number + 1) * count] for name, value in batch.items()}


def joined(parts: Sequence[Part]) -> Part:
    """Concatenate parts, a copy even of one: tensors along the first axis, lists end to end."""
    first = parts[0]
    return {
        name: _concatenated([part[name] for part in parts])
        if isinstance(value, torch.Tensor)
        else [entry for part in parts for entry in part[name]]
        for name, value in first.items()
    }


def on_device(device: torch.device, part: Part) -> Part:
    """Return a part with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in part.items()}


def _concatenated(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate along the first axis; on the CPU without torch's threads, which spin on after so short a task."""
    if tensors[0].device.type == "cpu":
        return torch.from_numpy(np.concatenate([tensor.numpy() for tensor in tensors]))
    return torch.cat(list(tensors))
