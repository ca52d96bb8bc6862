"""The loss of a method on a split that is not trained on, in evaluation mode, on the same batches each time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.data.collate import Dead, Part, on_device
from granary.training.data.loader import BatchPlan, Process, batches
from granary.training.data.ordering import PLAIN
from granary.training.data.reads import Reads
from granary.training.method import Moment
from granary.training.recipe import TrainRecipe
from granary.training.run.setup import open_sets

if TYPE_CHECKING:  # needed when a run begins, and in an extra
    from lightning_fabric import Fabric


class Validation:
    """The batches of a split, made as those of the training are: as large at most, and of the same views.

    A split that is no multiple of the batch is cut into equal batches, so fewer rows than there are batches and
    streams are left out, always the same ones.

    Args:
        recipe: of the training.
        plan: its batches.
        reads: what its method reads.
        fabric: of this process.

    Attributes:
        every: steps between measurements.
        plan: the batches of the split.
        count: how many they are.

    Raises:
        UserError: there are no such rows, or fewer than there are streams.
    """

    def __init__(self, recipe: TrainRecipe, plan: BatchPlan, reads: Reads, fabric: Fabric) -> None:
        self.fabric, self.recipe = fabric, recipe
        sets = open_sets(recipe, reads, recipe.validation.split)
        rows, streams = sum(dataset.count for dataset in sets), recipe.streams or fabric.world_size
        self.count = math.ceil(rows * recipe.accumulate / recipe.batch)
        batch = rows // self.count // streams * streams
        if not batch:
            raise UserError(
                f"validation.split: {recipe.validation.split!r} has {rows} rows, fewer than {streams} streams; "
                "give fewer streams"
            )
        self.plan = plan._replace(datasets=sets, batch=batch, streams=streams, ordering=PLAIN, groups=None)
        epoch = plan.rows // recipe.batch
        self.every = recipe.validation.every or max(1, epoch)

    @torch.no_grad()
    def measure(self, module: nn.Module, note: Callable[[list[Dead]], None]) -> dict[str, float]:
        """Return the means over the batches of the scalars that a method gives, on this process.

        Args:
            module: the method, as Fabric made it.
            note: takes the samples that cannot be decoded; others stand in for them.
        """
        sums: dict[str, float] = {}
        with evaluating(module):
            for number, batch in enumerate(self._batches()):
                note(batch.pop("dead"))
                moment = Moment(number, self.count, self.recipe.seed, self.fabric.global_rank)
                torch.manual_seed(int(moment.generator(0).integers(2**63)))
                for name, value in self._forward(module, batch, moment).items():
                    if value.ndim == 0:
                        sums[name] = sums.get(name, 0.0) + float(value)
        return {name: total / self.count for name, total in sums.items()}

    def _batches(self) -> Iterator[Part]:
        device, process = self.fabric.device, Process(self.fabric.global_rank, self.fabric.world_size)
        place, pin = partial(on_device, device), device.type == "cuda"
        return batches(self.plan, range(self.count), process, self.recipe.workers, place, pin)

    def _forward(self, module: nn.Module, batch: Part, moment: Moment) -> dict[str, Tensor]:
        mixed = self.recipe.device.precision == "bf16-mixed"
        with torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=mixed):
            output: dict[str, Tensor] = module(batch, moment)
        return output


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode; afterwards every part has its mode, and every buffer its values, again."""
    modes = {part: part.training for part in module.modules()}
    buffers = {buffer: buffer.clone() for buffer in module.buffers()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        with torch.no_grad():
            for buffer, values in buffers.items():
                buffer.copy_(values)
