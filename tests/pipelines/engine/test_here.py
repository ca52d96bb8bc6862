"""Stages of few units run without Beam, in threads of this process: same files, same markers, same sentences."""

from __future__ import annotations

import dataclasses
import io
import shutil
import subprocess
import sys
import threading
import time

import joblib
import pools
import pyarrow as pa
import pytest
import threadpoolctl
from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.runs.run import Run, Stage, Unit, UnitError
from granary.pipelines.engine.here import FEW, UnitRunner, run_here
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.units import Engine, Runner


@dataclasses.dataclass(frozen=True)
class Number:
    """The job of a unit: a number."""

    number: int


def note(run, job, output):
    """Write the number and how many threads BLAS has; fail for a number below zero."""
    if job.number < 0:
        raise ValueError("below zero")
    time.sleep(0.05)
    threads = max(pool["num_threads"] for pool in threadpoolctl.threadpool_info())
    output.write(pa.table({"number": [job.number], "threads": [threads], "thread": [threading.get_ident()]}))


def stage_of(numbers, **options):
    return Stage("notes", note, [Unit(i, Number(n)) for i, n in enumerate(numbers)], **options)


def test_beam_is_for_many_units_and_for_whoever_names_it():
    assert [Engine().here(units) for units in (0, 1, FEW, FEW + 1)] == [True, True, True, False]
    assert not Engine(["--runner=FlinkRunner"]).here(1)
    assert not Engine(["--direct_running_mode=in_memory"]).here(1)


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(1, "one", 1), (2, "one", 1), (3, "all", joblib.cpu_count())]
)
def test_units_share_the_workers_and_keep_to_their_threads(tmp_path, workers, cores, threads):
    runner = Runner(Run(str(tmp_path)), Engine(workers=workers), Progress(Console(file=io.StringIO())))
    runner.stage(stage_of(range(3) if cores == "one" else range(1), cores=cores))
    rows = runner.run.read_all("notes").to_pylist()
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert len({row["thread"] for row in rows}) == min(workers, len(rows))
    assert threading.get_ident() not in {row["thread"] for row in rows}
    assert {row["threads"] for row in rows} == {threads}


def test_a_failed_unit_is_one_sentence_and_what_waits_is_not_begun(tmp_path):
    runner = Runner(Run(str(tmp_path)), Engine(workers=1), Progress(Console(file=io.StringIO())))
    with pytest.raises(UserError, match=r"^stage notes, unit 1 of 4: ValueError: below zero\. Finished work is kept"):
        runner.stage(stage_of([0, -1, 2, 3]))
    done = sorted(path.name for path in (tmp_path / "notes").glob("*.done"))
    assert done[0] == "part-00000-of-00004.done"
    assert "part-00001-of-00004.done" not in done
    assert "part-00003-of-00004.done" not in done  # one may have begun before the failure was seen, two not
    assert not list((tmp_path / "notes").glob("*.tmp"))


def test_interrupted_it_waits_for_no_unit(tmp_path, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def slow(run, job, output):
        begun.set()
        ended.wait(60)
        output.write(pa.table({"number": [job.number]}))

    def interrupt(*_, **__):
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr("granary.pipelines.engine.here.concurrent.futures.wait", interrupt)
    stage = Stage("slow", slow, [Unit(i, Number(i)) for i in range(3)])
    try:
        with pytest.raises(KeyboardInterrupt):
            run_here(UnitRunner(Run(str(tmp_path)), stage, 1), 1, stage.units)
        assert not list(tmp_path.glob("slow/*.done"))
    finally:
        ended.set()


def test_errors_are_those_of_the_unit(tmp_path):
    stage = stage_of([-1])
    with pytest.raises(UnitError) as error:
        run_here(UnitRunner(Run(str(tmp_path)), stage, 1), 1, stage.units)
    assert isinstance(error.value.__cause__, ValueError)  # which --debug shows


def test_a_small_pool_is_curated_without_beam_to_the_same_bytes_and_markers(roles, run, tmp_path):
    words = ["curate", *pools.sources(roles), "--out", str(tmp_path / "run"), *pools.SMALL_UNITS, *pools.THRESHOLDS]
    code = f"""
import sys
from granary.pipelines.command import main
assert main({words}) == 0
print([name for name in ("apache_beam", "grpc") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "[]"
    there = pools.Run(str(tmp_path / "run"))
    stages = [row["stage"] for row in run.facts["stages"]]
    assert stages == [row["stage"] for row in there.facts["stages"]]
    assert there.hashes("dataset", "ledger", *stages) == run.hashes("dataset", "ledger", *stages)
    shutil.rmtree(there.path / "forest")
    again = pools.curate(roles, there.path, *pools.SMALL_UNITS, *pools.THRESHOLDS, beam=True)
    assert again.hashes("forest", "join") == run.hashes("forest", "join")
