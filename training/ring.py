"""Memory that worker processes leave pictures in, by turns.

It is mapped once: to map new memory for each run of pictures costs far more than to copy them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Ring:
    """Slots of shared memory, each with room for one run of pictures: for every name (rows, ...) uint8.

    A slot may be written again `slots` runs later: whoever takes a run out copies it before then.
    """

    def __init__(self, slots: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.slots = slots
        self.pictures = {
            name: torch.empty((slots, *shape), dtype=torch.uint8).share_memory_() for name, shape in shapes.items()
        }

    def put(self, slot: int, run: Mapping[str, Any]) -> dict[str, Any]:
        """Move the pictures of a run into a slot, in a worker; the rest is what the worker hands over."""
        for name, pictures in self.pictures.items():
            pictures[slot, : len(run[name])] = run[name]
        return {name: value for name, value in run.items() if name not in self.pictures} | {"slot": slot}

    def take(self, handed: dict[str, Any], pin: bool = False) -> dict[str, Any]:
        """Return the run of what a worker handed over; its pictures lie in the ring, or in pinned memory."""
        slot, rows = handed.pop("slot"), len(handed["id"])
        views: dict[str, Tensor] = {name: pictures[slot, :rows] for name, pictures in self.pictures.items()}
        return {**({name: view.pin_memory() for name, view in views.items()} if pin else views), **handed}
