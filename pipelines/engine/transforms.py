"""The Beam side of a stage: `Create(missing) | Reshuffle | ParDo(run_unit) | combine`.

Beam takes a second to import, so this module is imported by the first stage that has work to do.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from granary.curation.runs.run import J, Run, Stage, Unit, UnitError, run_unit
from granary.curation.store.threads import limit_threads
from granary.pipelines.engine import dask_cluster
from granary.pipelines.engine.here import UnitRunner
from granary.pipelines.engine.merge import A, Merge

P = ParamSpec("P")
C = TypeVar("C")  # what a combine computes
K = TypeVar("K")  # the job of the stage that writes it


def run_units(
    options: PipelineOptions,
    transform: RunUnits,
    units: Sequence[Unit[J]],
    combine: tuple[Merge[A, C], Stage[K]] | None = None,
) -> None:
    """Run units as one Beam pipeline, and the combine of their outputs; returns when all is done.

    Args:
        options: of the pipeline.
        transform: the stage of the units.
        units: the work; finished ones pass through.
        combine: over the URLs of the outputs, and the one-unit stage that writes its result.

    Raises:
        Exception: what a unit raised, as the runner tells it.
        RuntimeError: the pipeline ended otherwise than well.
    """
    pipeline = beam.Pipeline(options=options)
    outputs = pipeline | beam.Create(list(units)) | transform
    if combine is not None:
        merge, target = combine
        combined = beam.CombineGlobally(MergeOutputs(merge))
        # What nothing merges to is a side input, which costs a runner more than it looks, so only where it can be.
        merged = outputs | (combined.without_defaults() if units else combined)
        merged | beam.ParDo(WriteCombined(transform.runner.run, target))
    wait(pipeline.run())


class RunUnits(beam.PTransform):  # type: ignore[type-arg]  # Beam reads the parameters as hints, and knows no Unit[J]
    """Run each unit of the input; yields the URL of its output.

    Args:
        runner: of a unit; the units of its stage are not shipped.
    """

    def __init__(self, runner: UnitRunner[Any]) -> None:
        super().__init__(f"Run {runner.stage.name}")
        stage = dataclasses.replace(runner.stage, units=(), count=runner.stage.total)
        self.runner = dataclasses.replace(runner, stage=stage)

    def expand(self, units: beam.PCollection[Unit[Any]]) -> beam.PCollection[str]:
        """Apply to a PCollection of Unit."""
        return units | beam.Reshuffle() | beam.ParDo(_RunUnit(self.runner))


class _RunUnit(beam.DoFn, Generic[J]):
    def __init__(self, runner: UnitRunner[J]) -> None:
        self.runner = runner

    def process(self, unit: Unit[J]) -> Iterator[str]:
        """Run one unit."""
        plainly(self.runner, unit)
        yield self.runner.stage.output(self.runner.run, unit)


class MergeOutputs(beam.CombineFn, Generic[A, C]):
    """A `Merge` as Beam wants it."""

    def __init__(self, merge: Merge[A, C]) -> None:
        self.merge = merge

    def create_accumulator(self) -> A:
        """Return what nothing merges to."""
        return self.merge.create_accumulator()

    def add_input(self, accumulator: A, url: str) -> A:
        """Merge a part file."""
        return self.merge.add_input(accumulator, url)

    def merge_accumulators(self, accumulators: Iterable[A]) -> A:
        """Merge what several workers have merged."""
        return self.merge.merge_accumulators(accumulators)

    def extract_output(self, accumulator: A) -> C:
        """Return what the stage after the combine writes."""
        return self.merge.extract_output(accumulator)


class WriteCombined(beam.DoFn, Generic[J]):
    """Write what a combine returned as the one unit of its own stage."""

    def __init__(self, run: Run, stage: Stage[J]) -> None:
        self.run, self.stage = run, stage

    def process(self, combined: object) -> Iterator[str]:
        """Write one combined value; `stage.step` knows its table."""
        limit_threads(1)
        plainly(run_unit, self.run, self.stage, self.stage.units[0], combined)
        yield self.stage.output(self.run, self.stage.units[0])


def plainly(work: Callable[P, None], *args: P.args, **options: P.kwargs) -> None:
    """Do the work of a unit; of what it raises the sentence travels alone.

    Dask sends an error with all that caused it, and waits for ever for one that does not survive that.
    """
    try:
        work(*args, **options)
        return
    except UnitError as error:
        logging.getLogger(__name__).debug("a unit failed", exc_info=error)
        sentence = str(error)
    raise UnitError(sentence)


def wait(result: PipelineResult) -> None:
    """Wait for a pipeline; interrupted, or ended otherwise than well, its job does not run on and cost money.

    Raises:
        RuntimeError: it was cancelled, or ended in another state that no exception told of.
    """
    try:
        state = result.wait_until_finish()
    except KeyboardInterrupt:
        result.cancel()
        raise
    finally:
        dask_cluster.close(result)
    if state not in (None, PipelineState.DONE):  # None: a runner that only returns when all is done
        raise RuntimeError(f"the job ended in state {state}")
