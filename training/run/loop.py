"""The training loop, one for all methods: processes and devices through Fabric, schedules, checkpoints, alarm, probe.

Everything that happens at a step is a function of (recipe, step, weights): samples, augmentation, masks and dropped
branches are drawn from (seed, step), so that a run that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.runs.lock import held
from granary.curation.store import storage
from granary.training.data.collate import Part, in_pieces, on_device
from granary.training.data.loader import Process, batches
from granary.training.evaluation import collapse
from granary.training.method import Moment
from granary.training.methods import load_method
from granary.training.models.batch_norm import running_statistics, synchronise
from granary.training.models.checkpoint import Facts, method_weights, prune, step_folder, write_checkpoint
from granary.training.recipe import TrainRecipe
from granary.training.report import SHEET, write_report
from granary.training.run import directory
from granary.training.run.devices import (
    all_agree,
    limited_threads,
    make_fabric,
    mean_of_all,
    meeting_port,
    slow_precision,
)
from granary.training.run.directory import RunFacts
from granary.training.run.logs import Bar, LogWriter
from granary.training.run.on_features import on_features
from granary.training.run.optimisers import clip, make_optimiser
from granary.training.run.probe import OnlineProbe
from granary.training.run.progress import Progress
from granary.training.run.setup import build_method, open_plan, prepare_models
from granary.training.run.signals import stop_signals
from granary.training.run.state import gather_state, restore_state
from granary.training.run.validation import Validation
from granary.training.run.views import keeping_views
from granary.training.schedules import cosine, warmed_cosine

if TYPE_CHECKING:  # needed when a run begins, and in an extra
    from lightning_fabric import Fabric


class Stopped(UserError):
    """Training stopped before its end, with the state saved; the message says where, why and what to do."""


def train(recipe: TrainRecipe, console: Console | None = None, steal_lock: bool = False) -> RunFacts:
    """Train, going on from the last checkpoint of `recipe.out` where there is one.

    Args:
        recipe: what to train on what.
        console: for progress and the closing lines; None is silent.
        steal_lock: work in `recipe.out` although another process holds it.

    Returns:
        What run.json holds: kind, name, method, step, steps, finished, metrics, probe, alarms, dead, checkpoint,
        pictures_per_second. After SIGTERM or SIGINT `finished` is false: the state is saved, the same call goes on.

    Raises:
        UserError: a mistake in the recipe or the data, before any work, or another process works in `recipe.out`;
            `Stopped` after it.
    """
    spawned = recipe.device.strategy == "ddp_spawn"  # a console cannot be sent to another process
    made = _new_console if console is not None else None
    work = partial(_trained, recipe=recipe, console=made if spawned else console)
    with held(recipe.out, steal_lock), meeting_port():
        facts: RunFacts = make_fabric(recipe.device).launch(work)
    return facts


def _new_console() -> Console:
    return Console(stderr=True, highlight=False, markup=False)


def _trained(fabric: Fabric, recipe: TrainRecipe, console: Console | Callable[[], Console] | None) -> RunFacts:
    """Train on one process.

    Args:
        fabric: of this process.
        recipe: what to train on what.
        console: for the first process, or what makes it.
    """
    shown = console if console is None or isinstance(console, Console) else console()
    with limited_threads(recipe.device.threads):
        return TrainingSession(fabric, recipe, shown if fabric.is_global_zero else None).run()


class TrainingSession:
    """One session of a run, on one process."""

    def __init__(self, fabric: Fabric, recipe: TrainRecipe, console: Console | None) -> None:
        self.fabric, self.recipe, self.console = fabric, recipe, console
        kind = load_method(recipe.method)
        reads = kind.reads(kind.Options.model_validate(recipe.options))
        self.plan = open_plan(recipe, reads, fabric.world_size)
        self.steps = recipe.total_steps(self.plan.rows)
        self.probe = OnlineProbe(recipe) if recipe.probe.every else None
        torch.manual_seed(recipe.seed)
        self.method = build_method(recipe, self.plan)
        self.plan = self.plan._replace(crops=self.method.views())
        self.validation = Validation(recipe, self.plan, reads, fabric) if recipe.validation.split else None
        self._say(slow_precision(fabric.device, recipe.device.precision))
        self.begun = prepare_models(recipe, self.method)
        if fabric.world_size > 1 and recipe.device.batch_norm == "sync":
            synchronise(self.method, fabric.device)
        self.changes = directory.check(recipe, self.steps)
        fabric.barrier()
        if fabric.is_global_zero:
            directory.write_recipe(recipe)
            directory.write_files(recipe.out, self.method.files)
        if recipe.features.model or self.method.clips is not None:
            self.take_features()
        self.method.look(self.plan)
        self.module = fabric.setup_module(self.method)
        self.running = running_statistics(self.method)
        self.groups = self.method.parameter_groups()
        self.optimiser = make_optimiser(recipe.optimiser, self.groups)
        self.dead = directory.DeadLetters(recipe.out, fabric.is_global_zero)
        self.progress = Progress()
        self.unseen = fabric.is_global_zero and not storage.exists(storage.join(recipe.out, SHEET))
        self.pace = directory.earlier_pace(recipe.out)

    def take_features(self) -> None:
        """Put features in the place of pictures in all batches."""

        def say(sentence: str) -> None:
            self._say([sentence])

        self.plan = on_features(self.recipe, self.method, self.plan, self.fabric, say)
        if self.validation is not None:
            self.validation.plan = on_features(self.recipe, self.method, self.validation.plan, self.fabric, say)

    def run(self) -> RunFacts:
        """Train to the end, or until a signal asks to stop."""
        step, bad, stop = self._resume(), 0, False
        logs = LogWriter(self.recipe, step, self.fabric.is_global_zero)
        if step == 0 and self.recipe.device.strategy != "fsdp":  # which needs a step of the whole before its parts
            self._probe(step, logs)
        with Bar(self.console, step, self.steps, self.recipe.batch) as bar, stop_signals() as interrupted:
            try:
                for batch in self.batches_from(step):
                    output, finite, stop = self.step(batch, step, interrupted.is_set())
                    step, bad = step + 1, 0 if finite else bad + 1
                    self._watch(step, output, logs)
                    bar.show(step, self.progress.metrics["loss"])
                    lost = bad >= self.recipe.alarm.non_finite
                    better = self._validate(step, logs)
                    if better or step % self.recipe.checkpoints.every == 0 or step == self.steps or stop or lost:
                        self._save(step, logs)
                    if lost:
                        raise Stopped(
                            f"the loss was not finite for {bad} steps in a row, up to step {step}; weights and state "
                            f"from before them are saved in {step_folder(self.recipe.out, step)}; try a smaller "
                            "optimiser.lr"
                        )
                    if stop:
                        break
            except Stopped:
                self._end(step, bar, logs)
                raise
            facts = self._end(step, bar, logs)
        if facts["finished"] and self.fabric.is_global_zero:
            self.method.finish(facts["checkpoint"], self.recipe.out)
        if self.console is not None:
            self.console.print(directory.summary(facts, self.recipe.out), soft_wrap=True, highlight=False)
        return facts

    def batches_from(self, start: int) -> Iterator[Part]:
        """Yield the batches of this process from a step on, on its device."""
        device, recipe = self.fabric.device, self.recipe
        process = Process(self.fabric.global_rank, self.fabric.world_size)
        place, pin = partial(on_device, device), device.type == "cuda"
        return batches(self.plan, range(start, self.steps), process, recipe.workers, place, pin)

    def _showing(self, batch: Part) -> AbstractContextManager[None]:
        """Return a context that keeps the views of the first batch of a training, on the first process."""
        if not self.unseen:
            return nullcontext()
        self.unseen = False
        return keeping_views(self.method, batch, self.recipe.accumulate, storage.join(self.recipe.out, SHEET))

    def step(self, batch: Part, step: int, interrupted: bool = False) -> tuple[dict[str, Tensor], bool, bool]:
        """Take a step; returns the output of the method, whether all losses were finite, and whether to stop.

        Where one is not finite nothing is changed: what it did to running statistics is taken back.
        """
        before = [values.clone() for values in self.running]
        with self._showing(batch):
            output = self._backward(batch, step)
        finite, on = all_agree(self.fabric, math.isfinite(self.progress.metrics["loss"]), not interrupted)
        if finite:
            self._update(step)
        else:
            for values, earlier in zip(self.running, before, strict=True):
                values.copy_(earlier)
        return output, finite, not on

    def _backward(self, batch: Part, step: int) -> dict[str, Tensor]:
        """Compute losses and gradients of a step; keeps the numbers to log, returns the last output of the method."""
        self.dead.add(batch.pop("dead"))
        recipe, rank, pieces = self.recipe, self.fabric.global_rank, self.recipe.accumulate
        torch.manual_seed(int(Moment(step, self.steps, recipe.seed, rank).generator(0).integers(2**63)))
        self.optimiser.zero_grad(set_to_none=True)
        metrics: dict[str, float] = {}
        mixed = recipe.device.precision == "bf16-mixed"
        for number, piece in enumerate(in_pieces(batch, pieces)):
            moment = Moment(step, self.steps, recipe.seed, rank, number)
            with self.fabric.no_backward_sync(self.module, enabled=number + 1 < pieces):
                with torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=mixed):
                    output = self.module(piece, moment)
                self.fabric.backward(output["loss"] / pieces)
            for name, value in output.items():
                if value.ndim == 0:
                    metrics[name] = metrics.get(name, 0.0) + float(value.detach()) / pieces
        self.progress.metrics = metrics
        return output

    def _update(self, step: int) -> None:
        """Set the schedules, clip, step the optimiser, let the method follow."""
        options, progress = self.recipe.optimiser, step / max(1, self.steps)
        rate = warmed_cosine(options.start_lr, options.lr, options.final_lr, step, options.warmup, self.steps)
        last = options.weight_decay if options.final_weight_decay is None else options.final_weight_decay
        decay = cosine(options.weight_decay, last, progress)
        for settings, group in zip(self.optimiser.param_groups, self.groups, strict=True):
            settings["lr"] = (rate if group.scheduled else options.lr) * group.lr_scale * (step >= group.start)
            settings["weight_decay"] = decay if group.decay else 0.0
        if options.clip:
            self.progress.metrics |= clip(self.groups, options.clip)
        self.optimiser.step()
        self.method.after_step(Moment(step, self.steps, self.recipe.seed, self.fabric.global_rank))
        self.progress.metrics |= {"lr": rate, "weight_decay": decay}

    def _watch(self, step: int, output: dict[str, Tensor], logs: LogWriter) -> None:
        """Log, raise the alarm, probe: each every so many steps."""
        recipe = self.recipe
        if recipe.alarm.every and step % recipe.alarm.every == 0 and "features" in output:
            measures = collapse.measure(output["features"], output.get("teacher"), output.get("projections"))
            self.progress.metrics |= measures
            self._alarm(step, collapse.symptoms(measures, recipe.alarm), logs)
        if step % recipe.logs.every == 0 or step in (1, self.steps):
            logs.add("metrics", step, mean_of_all(self.fabric, self.progress.metrics))
        if recipe.probe.every and (step % recipe.probe.every == 0 or step == self.steps):
            self._probe(step, logs)

    def _validate(self, step: int, logs: LogWriter) -> bool:
        """Measure the loss on the validation split every so many steps; says whether it is to be kept as the best."""
        if self.validation is None or not (step % self.validation.every == 0 or step == self.steps):
            return False
        self.progress.validation = mean_of_all(self.fabric, self.validation.measure(self.module, self.dead.add))
        logs.add("validation", step, self.progress.validation)
        return self.recipe.validation.keep_best and self.progress.improved(step)

    def _probe(self, step: int, logs: LogWriter) -> None:
        """Score the model on labelled pictures; at step 0 that is what random weights are worth."""
        if self.probe is not None:
            self.progress.probe = self.probe.scores(self.method.evaluated_model(), self.fabric.device)
            logs.add("probe", step, self.progress.probe)

    def _alarm(self, step: int, symptoms: dict[str, str], logs: LogWriter) -> None:
        """Say what is new; stop where the recipe says so."""
        self._say(f"collapse alarm at {alarm}" for alarm in self.progress.raised(step, symptoms))
        if not all_agree(self.fabric, not (symptoms and self.recipe.alarm.stop))[0]:
            self._save(step, logs)
            raise Stopped(f"collapse alarm at step {step}: {'; '.join(symptoms.values())}; the state is saved")

    def _save(self, step: int, logs: LogWriter) -> None:
        tensors = gather_state(self.method, self.optimiser)
        if self.fabric.is_global_zero:
            logs.flush()
            facts: Facts = {"step": step, "method": self.recipe.method, **self.progress.facts()}
            facts |= {"recipe": self.recipe.model_dump(mode="json"), "known": self.method.remembered}
            config, weights = self.method.model_to_use(method_weights(tensors))
            write_checkpoint(step_folder(self.recipe.out, step), config, weights, tensors, facts)
            prune(self.recipe.out, self.recipe.checkpoints.keep, self.progress.best)
        self.fabric.barrier()

    def _resume(self) -> int:
        """Go on from the last whole checkpoint; returns the step to begin with."""
        state = directory.last_state(self.recipe.out, self.console, self.fabric.is_global_zero)
        self.fabric.barrier()
        if state is None:
            self._say(f"init: {remark}" for remark in self.begun)
            return 0
        tensors, facts, folder = state
        restore_state(self.method, self.optimiser, tensors, folder)
        self.progress = Progress.read(facts)
        self._say([f"going on at step {facts['step']:,} of {self.steps:,} from {folder}"])
        self._say(f"changed: {change}" for change in self.changes)
        return int(facts["step"])

    def _say(self, lines: Iterable[str]) -> None:
        """Print lines, on the first process of a run that has a console."""
        if self.console is not None:
            for line in lines:
                self.console.print(line, soft_wrap=True)

    def _end(self, step: int, bar: Bar, logs: LogWriter) -> RunFacts:
        """Write the last of the logs, run.json and the report."""
        logs.close()
        if step > bar.start:  # else this session did nothing
            self.pace = directory.Pace(round(bar.rate(step), 1), round(self.pace.seconds + bar.seconds, 1))
        counts = {"step": step, "steps": self.steps, "dead": len(self.dead.rows), "processes": self.fabric.world_size}
        facts = directory.run_facts(self.recipe, self.progress, self.pace, **counts)
        if self.fabric.is_global_zero:
            directory.write_facts(self.recipe.out, facts)
            write_report(self.recipe.out, facts)
        return facts
