"""Run the work units of a stage that are not finished, through Beam.

The same pipeline runs on every Beam runner; each stage is one job, because what the next one has to do is read from
what this one wrote. Locally it is always FnApiRunner with worker threads: decoding, matrix products and search are
native code that releases the interpreter lock. A stage of few units, or none, needs no Beam, and does not import it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from joblib import cpu_count

from granary.curation.errors import UserError
from granary.curation.runs.run import J, Marker, Run, Stage, Unit, close_stage, digest, finished, standing, to_retry
from granary.curation.runs.tables import DamagedPart
from granary.curation.sources.files import absolute
from granary.curation.steps.unreadable import what_allows
from granary.curation.store import storage
from granary.curation.store.printable import printable
from granary.pipelines.engine.dask_cluster import cause_of, check_cluster, is_dask
from granary.pipelines.engine.here import FEW, UnitRunner, run_here
from granary.pipelines.engine.memory import PeakMemory
from granary.pipelines.engine.merge import A, Merge
from granary.pipelines.engine.progress import Progress

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

C = TypeVar("C")  # what a combine computes
K = TypeVar("K")  # the job of the stage that writes it

PROCESSES_FROM = 500  # items: each process has first to import what the steps need, once for all stages


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where stages run.

    Args:
        options: Beam's command-line options; empty for the local runner.
        workers: local worker threads; 0 takes one per core.
        steal_lock: whether to work in a run directory that another command holds.
    """

    options: Sequence[str] = ()
    workers: int = 0
    steal_lock: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"workers: {self.workers} is not right: give 1 or more, or 0 for one per core")

    @property
    def local(self) -> bool:
        """Whether no runner was named, so that the work is done in this process."""
        return not any(option.startswith("--runner") for option in self.options)

    @property
    def threads(self) -> int:
        """The number of local workers; by default one per core this process may use (affinity, container quota)."""
        return self.workers or int(cpu_count())

    def at_once(self, units: int) -> int | None:
        """Return how many of a stage's units run at the same time; None where a remote engine decides."""
        return max(1, min(units, self._local_workers(units > 1))) if self.local else None

    def processes(self, run: Run, stage: Stage[J], units: Sequence[Unit[J]]) -> int:
        """Return how many processes run the units of a stage; 0 where worker threads, or another runner, do."""
        worth_it = stage.processes and stage.cores == "one" and sum(unit.weight for unit in units) >= PROCESSES_FROM
        paths = [run.url, *(source.path for sources in run.sources.values() for source in sources)]
        shared = not any(path.startswith("memory://") for path in paths)  # which no other process sees
        return self.threads if worth_it and shared and not self.options and min(len(units), self.threads) > 1 else 0

    def native_threads(self, units: int) -> int:
        """Return how many native threads each unit may use, so that all of them together have no more than the cores.

        A remote engine starts a process for each core of its workers, so one is right there.
        """
        return max(1, min(self._local_workers(True), int(cpu_count())) // max(1, units)) if self.local else 1

    def here(self, units: int) -> bool:
        """Whether a stage is done in this process without Beam: no options of it are given, and the units are few."""
        return not self.options and units <= FEW

    def _local_workers(self, parallel: bool) -> int:
        if not self.options:
            return self.threads
        from apache_beam.options.pipeline_options import DirectOptions

        direct = self.beam_options(parallel).view_as(DirectOptions)
        return 1 if direct.direct_running_mode == "in_memory" else direct.direct_num_workers or int(cpu_count())

    def beam_options(self, parallel: bool, job: str = "") -> PipelineOptions:
        """Return the options of one pipeline; FnApiRunner is always named (a bare DirectRunner may download).

        Args:
            parallel: whether it has more than one unit.
            job: what follows the user's --job_name, or "granary", in the name of a remote job.
        """
        from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

        if not self.local:
            options = PipelineOptions(list(self.options))
            named = options.view_as(GoogleCloudOptions)
            named.job_name = f"{named.job_name or 'granary'}-{job}".rstrip("-")
            return options
        local = ["--runner=FnApiRunner"]
        if not any(option.startswith("--direct_num_workers") for option in self.options):
            local.append(f"--direct_num_workers={self.threads if parallel else 1}")
        if parallel and not any(option.startswith("--direct_running_mode") for option in self.options):
            local.append("--direct_running_mode=multi_threading")
        # A stage of one unit runs here: a process would need seconds to start, and there is nothing beside it.
        chosen = [option for option in self.options if parallel or not option.startswith("--direct_running_mode=")]
        return PipelineOptions([*local, *chosen])

    def check_reach(self, run: Run) -> None:
        """Raise UserError when workers that are never on this machine could not reach the run or its sources."""
        if self.local:
            return
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

        runner = PipelineOptions(list(self.options)).view_as(StandardOptions).runner
        if runner != "DataflowRunner":
            return
        paths = {"out": [run.url], **{role: [one.path for one in listed] for role, listed in run.sources.items()}}
        for key, path in ((key, path) for key, listed in paths.items() for path in listed):
            if storage.is_local(path) and not path.startswith("hf:"):
                raise UserError(f"{key}: {path} is on this machine and no worker of {runner} is; give a gs:// address")


def job_name(run: Run, stage: Stage[J]) -> str:
    """Return what a remote job is called: no other stage of any run has that name while this one runs.

    The same stage of the same run has the same name again, so that Dataflow refuses to run it twice at a time.
    """
    words = re.sub(r"[^a-z0-9]+", "-", stage.name.lower()).strip("-")[:40].rstrip("-")
    return f"{words}-{digest(run.url, stage.digest)[:8]}"


@dataclasses.dataclass
class Runner:
    """Runs stages one after the other and keeps what they cost.

    Args:
        run: the run directory and sources.
        engine: where the units run.
        progress: what the user sees.
        timings: filled with one entry per stage that had work to do.
    """

    run: Run
    engine: Engine
    progress: Progress
    timings: list[dict[str, object]] = dataclasses.field(default_factory=list)
    _asked: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self) -> None:
        self.engine.check_reach(self.run)

    def stage(self, stage: Stage[J], combine: tuple[Merge[A, C], Stage[K]] | None = None) -> list[Marker]:
        """Run the units that are not finished; returns all markers in order.

        Args:
            stage: the units.
            combine: a merge of the outputs, and the one-unit stage that writes its result.

        Raises:
            UserError: a unit failed; the finished ones stay finished.
        """
        known = {i: one for i, one in standing(self.run, stage).items() if not to_retry(self.run, one)}
        missing = [unit for unit in stage.units if unit.index not in known]
        combined = combine is None or finished(self.run, combine[1], combine[1].units[0])
        if missing or not combined:
            self._run(stage, missing, None if combined else combine)
        if combine is not None:
            close_stage(self.run, combine[1])
        return close_stage(self.run, stage, known)

    def remove_stages(self, chosen: Callable[[str], bool]) -> None:
        """Remove the folders of stages that the recipe no longer has."""
        for name in filter(chosen, storage.names(self.run.url)):
            storage.remove(self.run.path(name))

    def _run(self, stage: Stage[J], missing: Sequence[Unit[J]], combine: tuple[Merge[A, C], Stage[K]] | None) -> None:
        threads = {"one": 1, "all": 0, "idle": self.engine.native_threads(len(missing))}[stage.cores]
        run = dataclasses.replace(self.run, url=absolute(self.run.url))  # workers may stand in another folder
        started = time.monotonic()
        memory = PeakMemory() if self.engine.local else None  # of other machines nothing is known here
        watched = memory or contextlib.nullcontext()
        with watched, self.progress.stage(self.run, stage, missing), one_sentence():
            self._ask_cluster(run)
            unit_runner = UnitRunner(run, stage, threads, self.engine.processes(run, stage, missing))
            if self.engine.here(len(missing)):
                run_here(unit_runner, self.engine.threads, missing, combine)
            else:
                self._run_by_beam(unit_runner, missing, combine)
        self.timings.append(self._timing(stage, missing, time.monotonic() - started, memory))

    def _run_by_beam(
        self, runner: UnitRunner[J], missing: Sequence[Unit[J]], combine: tuple[Merge[A, C], Stage[K]] | None
    ) -> None:
        from granary.pipelines.engine.transforms import RunUnits, run_units

        with quiet(self.engine):
            options = self.engine.beam_options(len(missing) > 1, job_name(runner.run, runner.stage))
            units = missing if combine is None else runner.stage.units
            run_units(options, RunUnits(runner), units, combine)

    def _ask_cluster(self, run: Run) -> None:
        """Before the first stage that has work to do: can the workers do it?"""
        if is_dask(self.engine.options) and not self._asked:
            note = check_cluster(self.engine.options, run)
            self._asked = True
            if note:
                self.progress.console.print(f"note: {printable(note)}", soft_wrap=True)

    def _timing(
        self, stage: Stage[J], missing: Sequence[Unit[J]], seconds: float, memory: PeakMemory | None
    ) -> dict[str, object]:
        """Return what run.json says of a stage that had work to do."""
        return {
            "stage": stage.name,
            "units": len(missing),
            "rows": sum(unit.weight for unit in missing),
            "noun": stage.noun,
            "seconds": round(seconds, 3),
            "workers": self.engine.at_once(len(missing)),
            "of": stage.total,
            "peak_mb": round(memory.bytes / 1e6, 1) if memory else None,
        }


@contextlib.contextmanager
def quiet(engine: Engine) -> Iterator[None]:
    """Let the local runner of Beam print nothing of its own, unless --debug is on."""
    beam_log = logging.getLogger("apache_beam")
    level = beam_log.level
    if engine.local and not logging.getLogger().isEnabledFor(logging.DEBUG):
        beam_log.setLevel(logging.CRITICAL)
        from apache_beam.runners.worker import sdk_worker

        # Its worker also prints tracebacks, some of them after the pipeline has failed; nothing else is printed there.
        setattr(sdk_worker, "print", lambda *_, **__: None)  # noqa: B010
    try:
        yield
    finally:
        beam_log.setLevel(level)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a failed stage into one sentence; its traceback goes to the debug log, not to the terminal."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("a stage failed", exc_info=error)
        match = re.search(r"stage [\w.-]+, unit \d+ of \d+: .*?(?= ;;)", str(error))
        last = str(error).strip().rpartition("\n")[2]
        told = match.group(0) if match else last  # a combine, too, reads parts
        damaged = re.search(r"DamagedPart: (.+?) cannot be read \((.+?)\); if it", told)
        if damaged:
            raise DamagedPart(*damaged.groups()) from error
        cause = match.group(0) if match else cause_of(error) or f"{type(error).__name__}: {last}"
        raise UserError(f"{cause}. {advice(cause)}") from error


def advice(cause: str) -> str:
    """Return what the user can do about a failed unit."""
    if re.search(r"No space left|Errno 28|Disk quota|Errno 122", cause):
        return "The disk is full: free space and run the same command again; finished work is kept."
    if re.search(r"File too large|Errno 27", cause):
        return "The file system takes no file as large: choose another --out; finished work there is kept."
    if allowed := what_allows(cause):
        return allowed
    if "TooManyUnreadable" in cause:
        return (
            "Repair the connection, the mount or the permissions and run the same command again, finished work is "
            "kept; or take these files for lost with --max_unreadable 1."
        )
    if "KilledWorker" in cause:
        return (
            "Workers are killed when they lack memory: lower --unit_rows, --shards.rows or --dedup.block, as far as "
            "the command has them, or give them more (`dask worker --memory-limit`); their logs say more."
        )
    if "MemoryError" in cause or "not enough memory" in cause:
        return (
            "The unit does not fit in memory: lower --unit_rows, --shards.rows or --dedup.block, as far as the command "
            "has them, and run it again."
        )
    return (
        "Finished work is kept: run the same command again to go on (--debug shows the traceback, `granary check RUN` "
        "whether a file is damaged)."
    )
