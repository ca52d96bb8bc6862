"""A training that is tried before it is begun: data and models opened, a few steps taken and timed, all thrown away."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.report.writing import duration
from granary.curation.store.printable import printable
from granary.training.models.checkpoint import usable
from granary.training.recipe import TrainRecipe
from granary.training.run import directory
from granary.training.run.devices import limited_threads, make_fabric
from granary.training.run.loop import TrainingSession
from granary.training.run.state import gather_state

if TYPE_CHECKING:
    pass

STEPS = 8  # that are taken
COUNTED = 5  # of them, the last: before them workers start and memory is allocated


class Trial(TrainingSession):
    """A session that takes a few steps and keeps nothing."""

    def take_features(self) -> None:
        """Refuse what would take hours before the first step; raises UserError."""
        raise UserError(
            f"{self.recipe.method}: the features of all pictures or clips are computed before the first step, so a "
            "dry run says nothing of it; leave --dry-run out"
        )


def try_training(recipe: TrainRecipe, console: Console) -> None:
    """Print what a training would be, by a few of its steps on one process; `recipe.out` stays as it is.

    Args:
        recipe: to train by.
        console: to print to.

    Raises:
        UserError: what would stop the training: a mistake in the recipe or the data, another training in `out`; or it
            trains on features, which would all have to be computed first.
    """
    processes = recipe.device.devices * recipe.device.nodes
    with tempfile.TemporaryDirectory() as folder, limited_threads(recipe.device.threads):
        alone = recipe.device.model_copy(update={"devices": 1, "nodes": 1, "strategy": "auto"})
        nothing = {"probe": recipe.probe.model_copy(update={"every": 0}), "out": f"{folder}/training"}
        share = recipe.model_copy(update={**nothing, "device": alone, "batch": recipe.batch // processes})
        session = Trial(make_fabric(alone), share, console)
        steps = recipe.total_steps(session.plan.rows)
        directory.check(recipe, steps)
        for line in [*_described(session, recipe, steps), *_timed(session, recipe, steps, processes)]:
            console.print(printable(line, keep=""), soft_wrap=True)


def _described(session: Trial, recipe: TrainRecipe, steps: int) -> Iterator[str]:
    """Yield what is known without a step."""
    plan, parameters = session.plan, list(session.method.parameters())
    classes = f", {len(plan.classes):,} classes" * bool(plan.classes)
    yield f"data: {plan.rows:,} rows of {len(plan.datasets)} datasets{classes}"
    trained, whole = (sum(p.numel() for p in some) for some in ((p for p in parameters if p.requires_grad), parameters))
    yield f"{recipe.method}: {trained:,} numbers are trained, {whole - trained:,} are not"
    yield from (f"init: {remark}" for remark in session.begun)
    passes = steps * recipe.batch / plan.rows
    yield f"{steps:,} steps of {recipe.batch:,} rows, each row {passes:,.1f} times"
    if done := next((int(folder.rsplit("-", 1)[1]) for folder in usable(recipe.out)), 0):
        yield f"{recipe.out} is at step {done:,} already"


def _timed(session: Trial, recipe: TrainRecipe, steps: int, processes: int) -> Iterator[str]:
    """Take a few steps and yield what they took."""
    device, times, losses = session.fabric.device, [], []
    if cuda := device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    for step, batch in enumerate(itertools.islice(session.batches_from(0), STEPS)):
        session.step(batch, step)
        losses.append(session.progress.metrics["loss"])
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    seconds = statistics.median(times[-COUNTED:])
    rate = session.recipe.batch / seconds
    yield f"a step takes {seconds:.3g} s on {device}, {rate:,.0f} rows/s; the loss began at {losses[0]:.4g}"
    for uri, _, error, message in itertools.islice(session.dead.rows.values(), 1):
        yield f"{len(session.dead.rows):,} of the pictures cannot be decoded, the first {uri}: {error}, {message}"
    of = f", if {processes} processes are each as fast" * (processes > 1)
    yield f"all steps: {duration(seconds * steps)}{of}; probes and validation come on top"
    size = sum(tensor.nbytes for tensor in gather_state(session.method, session.optimiser).values())
    most = f", {torch.cuda.max_memory_allocated(device) / 1e9:,.1f} GB of the device at most" * cuda
    yield f"a checkpoint has about {size / 1e6:,.1f} MB, {recipe.checkpoints.keep} are kept{most}"
