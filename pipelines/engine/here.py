"""A stage of few units, run in threads of this process: to build a Beam pipeline costs more than such a stage.

What runs is what Beam would run, so files and markers are the same.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

from joblib import cpu_count

from granary.curation.runs.run import J, Run, Stage, Unit, run_unit
from granary.curation.store.threads import limit_threads
from granary.pipelines.engine.children import run_in_child
from granary.pipelines.engine.merge import A, Merge

C = TypeVar("C")  # what a combine computes
K = TypeVar("K")  # the job of the stage that writes it

FEW = 8  # units


@dataclasses.dataclass(frozen=True)
class UnitRunner(Generic[J]):
    """How a worker runs a unit.

    Args:
        run: the run directory and sources.
        stage: whose step is called; its units need not be there.
        threads: native threads one unit may use (BLAS, OpenMP, torch); 0 for every core of its machine.
        processes: of this machine that run the units; 0: the worker itself does.
    """

    run: Run
    stage: Stage[J]
    threads: int
    processes: int = 0

    def __call__(self, unit: Unit[J]) -> None:
        """Run a unit; raises what it raises."""
        if self.processes:
            run_in_child(self.processes, self.run, self.stage, unit)
        else:
            limit_threads(self.threads or int(cpu_count()))
            run_unit(self.run, self.stage, unit)


def run_here(
    runner: UnitRunner[J],
    workers: int,
    units: Sequence[Unit[J]],
    combine: tuple[Merge[A, C], Stage[K]] | None = None,
) -> None:
    """Run units in threads, and the combine of all outputs of their stage; returns when all is done.

    Args:
        runner: of each unit.
        workers: threads at a time.
        units: the work.
        combine: over the URLs of the outputs of the stage, and the one-unit stage that writes its result.

    Raises:
        Exception: what a unit raised; those at work are finished first, those that wait are not begun.
    """
    pool = concurrent.futures.ThreadPoolExecutor(max(1, min(workers, len(units))), "granary-unit")
    patient = True
    try:
        _all([pool.submit(runner, unit) for unit in units])
        if combine is not None:
            merge, target = combine
            _all([pool.submit(lambda: _write_combined(runner, merge, target))])
    except KeyboardInterrupt:
        patient = False  # what a unit has not finished was never there
        raise
    finally:
        pool.shutdown(wait=patient, cancel_futures=True)


def _all(futures: Sequence[concurrent.futures.Future[None]]) -> None:
    """Wait for futures, or for the first that fails; raises what it raised."""
    done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    for future in futures:
        if future in done:
            future.result()


def _write_combined(runner: UnitRunner[J], merge: Merge[A, C], target: Stage[K]) -> None:
    """Merge the outputs of a stage in their order, and write what comes of it."""
    limit_threads(1)
    merged = merge.create_accumulator()
    for unit in runner.stage.units:
        merged = merge.add_input(merged, runner.stage.output(runner.run, unit))
    run_unit(runner.run, target, target.units[0], merge.extract_output(merged))
