"""Memory that worker processes leave pictures in, by turns.

It is mapped once: to map new memory for each run of pictures costs far more than to copy them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from functools import cached_property
from multiprocessing.sharedctypes import RawArray

import torch
from torch import Tensor

from granary.training.data.collate import Part


class Ring:
    """Slots of shared memory, each with room for one run of pictures: for every name (rows, ...) uint8.

    A slot may be written again `slots` runs later: whoever takes a run out copies it before then. Where /dev/shm has no
    room (containers often limit it to 64 MB) the memory is that of a temporary file.
    """

    def __init__(self, slots: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.slots, self.shapes = slots, dict(shapes)
        self.memory = {name: RawArray(ctypes.c_uint8, slots * math.prod(shape)) for name, shape in shapes.items()}

    @cached_property
    def pictures(self) -> dict[str, Tensor]:
        """The memory as (slots, rows, ...) uint8 by name, made in each process: a tensor would be sent as a copy."""
        return {
            name: torch.frombuffer(memory, dtype=torch.uint8).view(self.slots, *self.shapes[name])
            for name, memory in self.memory.items()
        }

    def put(self, slot: int, run: Part) -> Part:
        """Move the pictures of a run into a slot, in a worker; the rest is what the worker hands over."""
        for name, pictures in self.pictures.items():
            pictures[slot, : len(run[name])] = run[name]
        return {name: value for name, value in run.items() if name not in self.pictures} | {"slot": slot}

    def take(self, handed: Part, pin: bool = False) -> Part:
        """Return the run of what a worker handed over; its pictures lie in the ring, or in pinned memory."""
        slot, rows = handed.pop("slot"), len(handed["id"])
        views: dict[str, Tensor] = {name: pictures[slot, :rows] for name, pictures in self.pictures.items()}
        return {**({name: view.pin_memory() for name, view in views.items()} if pin else views), **handed}
