"""A part of a batch: some samples, column by column, as workers make it, hand it over and put it together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

Part = dict[str, Any]  # column -> a tensor, or a list of as many entries: which columns there are is the method's wish
Dead = tuple[str, str, str]  # uri, error, message


def stacked(samples: Sequence[tuple[Part, Part]]) -> Part:
    """Return rows and their views as one part."""
    first = samples[0][0]
    part: Part = {name: torch.from_numpy(np.stack([views[name] for _, views in samples])) for name in samples[0][1]}
    part["id"] = [row["key"] for row, _ in samples]
    if "label" in first:
        part["label"] = torch.tensor([row["label"] for row, _ in samples])
    if "captions" in first:
        part["captions"] = [row["captions"] for row, _ in samples]
    return part


def divided(run: Part) -> Iterator[Part]:
    """Yield what `Parts` made, step by step."""
    size = len(run["id"]) // len(run["dead"])
    entries = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in run.items()}
    for step, dead in enumerate(entries.pop("dead")):
        yield {**{name: value[step * size : (step + 1) * size] for name, value in entries.items()}, "dead": dead}


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
