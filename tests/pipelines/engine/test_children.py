"""Processes beside this one: when there are any, and what a killed one costs."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import signal

import pyarrow as pa
from rich.console import Console

from granary.curation.runs.run import NoJob, Run, Stage, Unit
from granary.curation.sources import Source
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.units import Engine, Runner


@dataclasses.dataclass(frozen=True)
class Number:
    """The job of a unit: a number."""

    number: int


def dies_in_a_child(run, job, output):
    """Kill a process that was started for it, as the system does when memory ends; work in any other."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    output.write(pa.table({"number": [job.number]}))


def test_a_killed_worker_process_costs_no_unit(tmp_path, monkeypatch):
    monkeypatch.setattr("granary.pipelines.engine.units.PROCESSES_FROM", 1)
    runner = Runner(Run(str(tmp_path / "run")), Engine(workers=2), Progress(Console(file=io.StringIO())))
    runner.stage(Stage("mortal", dies_in_a_child, [Unit(i, Number(i)) for i in range(3)], processes=True))
    assert runner.run.read_all("mortal")["number"].to_pylist() == [0, 1, 2]


def test_processes_are_for_long_stages_of_several_units_here():
    run, stage = Run("run"), Stage("s", dies_in_a_child, [], processes=True)
    many, one = [Unit(i, NoJob(), weight=300) for i in range(2)], [Unit(0, NoJob(), weight=600)]
    assert Engine(workers=2).processes(run, stage, many) == 2
    assert Engine(workers=2).processes(run, stage, one) == 0
    assert Engine(workers=1).processes(run, stage, many) == 0
    assert Engine(workers=2).processes(run, stage, many[:1]) == 0
    assert Engine(workers=2).processes(Run("memory://run"), stage, many) == 0
    unseen = Run("run", {"images": [Source(path="memory://photos/")]})
    assert Engine(workers=2).processes(unseen, stage, many) == 0
    assert Engine(["--runner=FlinkRunner"], workers=2).processes(run, stage, many) == 0
