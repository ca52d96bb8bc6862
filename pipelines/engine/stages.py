"""Name, run and remember the stages of a pipeline: what every pipeline of granary is written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam

from granary.curation.runs.run import Marker, Run, Stage, Unit
from granary.pipelines.engine.units import Runner


@dataclasses.dataclass
class Stages:
    """Runs stages in the order they are called, and keeps the digest and the markers of each by name.

    Args:
        runner: runs one stage.
    """

    runner: Runner
    digests: dict[str, str] = dataclasses.field(default_factory=dict, kw_only=True)
    markers: dict[str, list[Marker]] = dataclasses.field(default_factory=dict, kw_only=True)

    @property
    def run_directory(self) -> Run:
        """The run directory."""
        return self.runner.run

    def parallel(
        self,
        name: str,
        step: Any,
        units: Sequence[Mapping[str, Any]],
        inputs: Iterable[str],
        noun: str = "units",
        weights: Sequence[int] | None = None,
        combine: tuple[beam.CombineFn, str, Any, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """Run a stage of many units.

        Args:
            name: of the stage.
            step: what a unit calls.
            units: the arguments of each.
            inputs: names of the stages it reads.
            noun: what the weights count.
            weights: number of items in each unit; one each by default.
            combine: (CombineFn, name, step, arguments) of the one-unit stage that merges the outputs.
            options: further fields of the stage.
        """
        work = [Unit(i, arguments, weights[i] if weights else 1) for i, arguments in enumerate(units)]
        stage = Stage(name, step, work, [self.digests[i] for i in inputs], noun=noun, **options)
        self.digests[name] = stage.digest
        merged = None
        if combine is not None:
            function, target, writer, arguments = combine
            merged = (function, Stage(target, writer, [Unit(0, arguments)], [stage.digest]))
            self.digests[target] = merged[1].digest
        self.markers[name] = self.runner.stage(stage, merged)

    def serial(self, name: str, step: Any, inputs: Iterable[str], **arguments: Any) -> Marker:
        """Run a stage of one unit, which may use every core."""
        stage = Stage(name, step, [Unit(0, arguments)], [self.digests[i] for i in inputs], cores="all")
        self.digests[name] = stage.digest
        self.markers[name] = self.runner.stage(stage)
        return self.markers[name][0]
