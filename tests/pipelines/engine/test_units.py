"""Stages of work units: what counts as finished, what Beam combines, what a failure leaves behind."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import logging
import os
import re
import threading
import time
from collections import Counter

import joblib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import threadpoolctl
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions
from apache_beam.runners.runner import PipelineState
from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.runs.run import NoJob, Output, Run, Stage, Unit, UnitError, close_stage, finished, run_unit
from granary.curation.runs.tables import DamagedPart, read_table
from granary.curation.sources import Source
from granary.curation.store import storage
from granary.curation.store.threads import limit_threads
from granary.pipelines.engine.progress import Progress, Watch
from granary.pipelines.engine.transforms import wait
from granary.pipelines.engine.units import Engine, Runner, job_name


@dataclasses.dataclass(frozen=True)
class Number:
    """The job of a unit: a number."""

    number: int


def square(run, job, output):
    """Write the square of a number; a number below zero fails."""
    if job.number < 0:
        raise ValueError("a number\nbelow zero")
    output.counters["squares"] += 1
    output.write(pa.table({"square": [job.number**2]}))


def total(run, job, output, combined):
    """Write what the combine computed."""
    output.write(pa.table({"total": [combined]}))


class SumSquares:
    def create_accumulator(self):
        return 0

    def add_input(self, so_far, url):
        return so_far + read_table(url)["square"][0].as_py()

    def merge_accumulators(self, parts):
        return sum(parts)

    def extract_output(self, so_far):
        return so_far


def stage_of(numbers, **options):
    return Stage("squares", square, [Unit(i, Number(n)) for i, n in enumerate(numbers)], **options)


@pytest.fixture(params=[[], ["--direct_running_mode=multi_threading"]], ids=["here", "beam"])
def runner(tmp_path, request):
    console = Console(file=io.StringIO(), width=120, highlight=False, markup=False)
    return Runner(Run(str(tmp_path / "run")), Engine(request.param, workers=2), Progress(console))


def modified(runner):
    return {
        name: os.stat(runner.run.path("squares", name)).st_mtime_ns
        for name in storage.names(runner.run.path("squares"))
        if name != "index.json"
    }


def test_a_stage_writes_a_part_a_marker_and_an_index(runner):
    markers = runner.stage(stage_of(range(5)))
    assert storage.names(runner.run.path("squares")) == ["index.json"] + [
        f"part-0000{i}-of-00005.{ending}" for i in range(5) for ending in ("done", "parquet")
    ]
    assert runner.run.read_all("squares")["square"].to_pylist() == [0, 1, 4, 9, 16]
    assert runner.run.rows("squares") == [marker.rows for marker in markers] == [1] * 5
    for part, marker in zip(runner.run.parts("squares"), markers, strict=True):
        assert storage.size(part) == marker.size
        assert marker.sha256 == hashlib.sha256(storage.read_bytes(part)).hexdigest()
        assert marker.counters == {"squares": 1}
    assert runner.timings[0]["units"] == 5
    assert runner.timings[0]["workers"] == 2


def test_a_combine_merges_all_units_whether_they_ran_now_or_before(runner):
    merged = (SumSquares(), Stage("total", total, [Unit(0, NoJob())], ["x"]))
    runner.stage(stage_of(range(4)))
    runner.stage(stage_of(range(4)), merged)
    assert runner.run.read("total", 0)["total"].to_pylist() == [14]
    before = modified(runner)
    runner.stage(stage_of(range(4)), (SumSquares(), Stage("total", total, [Unit(0, NoJob())], ["y"])))
    assert modified(runner) == before
    assert [timing["units"] for timing in runner.timings] == [4, 0, 0]


def test_a_combine_names_the_part_that_is_damaged(runner):
    runner.stage(stage_of(range(4)))
    part = runner.run.parts("squares")[2]
    storage.write_bytes(part, bytes(storage.size(part)))  # as long as its marker says
    with pytest.raises(DamagedPart) as error:
        runner.stage(stage_of(range(4)), (SumSquares(), Stage("total", total, [Unit(0, NoJob())], ["x"])))
    assert error.value.url == part  # which is made again


def test_a_failed_unit_is_one_sentence_and_the_others_stay(runner, caplog):
    with pytest.raises(UserError) as error:
        runner.stage(stage_of([0, 1, -1, 3, 4, 5]))
    assert str(error.value).startswith("stage squares, unit 2 of 6: ValueError: a number below zero. ")
    assert "\n" not in str(error.value)
    assert logging.getLogger("apache_beam").level == logging.NOTSET
    files = modified(runner)
    # of the units that are done; others may be at work
    done = {name: at for name, at in files.items() if name.replace(".parquet", ".done") in files}
    assert "part-00002-of-00006.done" not in done
    assert not runner.run.parts("squares")
    repaired = stage_of([0, 1, 2, 3, 4, 5])
    runner.stage(repaired)
    after = modified(runner)
    assert done.items() <= after.items()
    assert runner.run.read_all("squares")["square"].to_pylist() == [0, 1, 4, 9, 16, 25]


def changes():
    base = stage_of([3, 4])
    return {
        "job": stage_of([5, 4]),
        "inputs": stage_of([3, 4], inputs=["other"]),
        "revision": stage_of([3, 4], revision=2),
        "number of units": stage_of([3, 4, 5]),
        "step": dataclasses.replace(base, step=total),
    }


@pytest.mark.parametrize("what", changes())
def test_whatever_an_output_depends_on_is_in_its_digest(runner, what):
    first, other = stage_of([3, 4]), changes()[what]
    runner.stage(first)
    assert finished(runner.run, first, first.units[0])
    assert not finished(runner.run, other, other.units[0])
    assert first.digest != other.digest


def test_weights_and_places_are_in_no_digest(tmp_path):
    first, heavy = stage_of([3]), Stage("squares", square, [Unit(0, Number(3), 9)])
    assert first.digest == heavy.digest
    assert first.output(Run(str(tmp_path)), first.units[0]).startswith(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"digest": "x"}', "\udcff", '{"rows": 1, "more": 2}'])
def test_what_is_no_marker_is_no_finished_unit(runner, text):
    stage = stage_of([3])
    runner.stage(stage)
    storage.write_bytes(stage.marker(runner.run, stage.units[0]), text.encode("utf-8", "surrogateescape"))
    assert not finished(runner.run, stage, stage.units[0])
    runner.stage(stage)
    assert finished(runner.run, stage, stage.units[0])


def test_closing_a_stage_removes_what_an_earlier_recipe_left(runner):
    runner.stage(stage_of(range(4)))
    storage.write_bytes(runner.run.path("squares", "part-00000-of-00002.parquet.0a.tmp"), b"half")
    runner.stage(stage_of(range(2)))
    assert storage.names(runner.run.path("squares")) == [
        "index.json",
        "part-00000-of-00002.done",
        "part-00000-of-00002.parquet",
        "part-00001-of-00002.done",
        "part-00001-of-00002.parquet",
    ]
    runner.remove_stages(lambda name: name == "squares")
    assert runner.run.parts("squares") == []


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_unit_that_fails_half_way_leaves_nothing(tmp_path):
    def half(run, job, output):
        output.write(pa.table({"a": list(range(100_000))}))
        raise OSError(28, "No space left on device")

    run, stage = Run(str(tmp_path)), Stage("half", half, [Unit(0, NoJob())])
    with pytest.raises(UnitError, match=r"stage half, unit 0 of 1: OSError: \[Errno 28\] No space left on device"):
        run_unit(run, stage, stage.units[0])
    gc.collect()  # pyarrow ends the abandoned file now: nothing may be said of it
    assert os.listdir(tmp_path / "half") == []


def test_a_step_that_writes_no_table_is_an_error(tmp_path):
    run, stage = Run(str(tmp_path)), Stage("idle", lambda run, job, output: None, [Unit(0, NoJob())])
    with pytest.raises(UnitError, match="wrote no table"):
        run_unit(run, stage, stage.units[0])


def test_tables_keep_their_row_groups_and_a_file_may_have_none():
    sink = io.BytesIO()
    output = Output(sink)
    for rows in (3, 0, 2):
        output.write(pa.table({"a": pa.array(range(rows), pa.int64())}))
    marker = output.finish("d")
    assert marker.sha256 == hashlib.sha256(sink.getvalue()).hexdigest()
    assert (marker.size, marker.rows) == (len(sink.getvalue()), 5)
    groups = pq.ParquetFile(io.BytesIO(sink.getvalue())).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [3, 0, 2]
    empty = io.BytesIO()
    output = Output(empty)
    output.begin(pa.schema([("a", pa.int64())]))
    assert output.finish("d").rows == 0
    assert pq.ParquetFile(io.BytesIO(empty.getvalue())).metadata.num_row_groups == 0


def test_progress_counts_what_was_done_now(runner):
    stage = Stage("squares", square, [Unit(i, Number(i), weight=10) for i in range(4)], noun="images")
    run_unit(runner.run, stage, stage.units[0])
    runner.stage(stage)
    line = runner.progress.console.file.getvalue()
    assert line.startswith("squares      30/30 images, ")
    assert line.rstrip().endswith("(1 of 4 units were done)")
    close_stage(runner.run, stage)


@pytest.mark.parametrize(
    "times", [("mtime", 5.0, 7.0), ("mtime", 7.0, 5.0), ("ETag", "a", "b"), ("LastModified", 1, 2)]
)
def test_progress_counts_what_is_new_whatever_the_clock_says(runner, monkeypatch, times):
    stage = Stage("squares", square, [Unit(i, Number(i), weight=10) for i in range(4)])
    key, before, after = times
    entries = {stage.stem(unit) + ".done": {key: before} for unit in stage.units[:2]}

    class Store:
        def ls(self, path, detail, **options):
            return [{"name": f"bucket/squares/{name}", **entry} for name, entry in entries.items()]

    monkeypatch.setattr(storage, "filesystem", lambda url: (Store(), url))
    watch = Watch(runner.run, stage, stage.units)
    assert watch.completed() == 0  # what an earlier run left
    entries[stage.stem(stage.units[0]) + ".done"] = {key: after}
    entries[stage.stem(stage.units[3]) + ".done"] = {}
    assert watch.completed() == 20


def test_threads_of_native_libraries_are_limited():
    import torch

    before = torch.get_num_threads()
    try:
        limit_threads(1)
        threadpoolctl.threadpool_limits(2)  # what another part of the process may do between two units
        limit_threads(1)
        counts = Counter(pool["num_threads"] for pool in threadpoolctl.threadpool_info())
        assert set(counts) == {1}
        assert torch.get_num_threads() == 1
    finally:
        limit_threads(before)


def test_a_worker_thread_limits_what_another_thread_has_set():
    found = []

    def work():
        limit_threads(1)
        found.extend(pool["num_threads"] for pool in threadpoolctl.threadpool_info())

    limit_threads(2)
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    limit_threads(1)
    assert set(found) == {1}


def busy(run, job, output):
    """Write when the unit ran and how many threads each native library would use in it."""
    import faiss
    import torch

    started = time.monotonic()
    pools = threadpoolctl.threadpool_info()
    torch.ones(64, 64) @ torch.ones(64, 64)
    threads = [*(pool["num_threads"] for pool in pools), torch.get_num_threads(), faiss.omp_get_max_threads()]
    time.sleep(0.05)
    output.write(pa.table({"threads": [max(threads)], "started": [started], "ended": [time.monotonic()]}))


@pytest.mark.parametrize("cores", ["one", "idle"])
@pytest.mark.parametrize("units", [1, 2, 7])
def test_native_threads_times_units_at_once_never_exceed_the_cores(tmp_path, cores, units):
    quiet = Console(file=io.StringIO())
    runner = Runner(Run(str(tmp_path / "run")), Engine(), Progress(quiet))
    runner.stage(Stage("busy", busy, [Unit(i, NoJob()) for i in range(units)], cores=cores))
    rows = runner.run.read_all("busy").to_pylist()
    for one in rows:
        together = [row for row in rows if row["started"] <= one["started"] < row["ended"]]
        assert sum(row["threads"] for row in together) <= os.cpu_count()
        assert len(together) <= runner.timings[0]["workers"]


def test_native_threads_fill_idle_cores_and_no_more(monkeypatch):
    monkeypatch.setattr("granary.pipelines.engine.units.cpu_count", lambda: 8)
    assert [Engine().native_threads(units) for units in (1, 2, 3, 8, 100)] == [8, 4, 2, 1, 1]
    assert [Engine(workers=workers).native_threads(1) for workers in (1, 4, 8, 64)] == [1, 4, 8, 8]
    assert Engine(["--direct_running_mode=in_memory"]).native_threads(1) == 1
    assert Engine(["--runner=FlinkRunner"]).native_threads(1) == 1  # the cores of this machine say nothing there


def test_a_remote_engine_decides_for_itself_how_many_units_run(monkeypatch):
    monkeypatch.setattr("granary.pipelines.engine.units.cpu_count", lambda: 4)
    assert [Engine().at_once(units) for units in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert Engine(["--direct_num_workers=2"]).at_once(9) == 2
    assert Engine(["--direct_running_mode=in_memory"]).at_once(9) == 1
    assert Engine(["--runner=DataflowRunner"], workers=7).at_once(9) is None


def test_a_single_unit_starts_no_process():
    engine = Engine(["--direct_running_mode=multi_processing"], workers=2)
    modes = [engine.beam_options(parallel).view_as(DirectOptions).direct_running_mode for parallel in (True, False)]
    assert modes == ["multi_processing", "in_memory"]


def test_a_container_quota_bounds_the_default(monkeypatch):
    monkeypatch.setattr("granary.pipelines.engine.units.cpu_count", lambda: 3)
    assert Engine().threads == 3
    assert Engine(workers=5).threads == 5
    assert joblib.cpu_count() <= os.cpu_count()


def test_remote_jobs_have_valid_and_distinct_names():
    """Dataflow's rule; Kubernetes allows 63 characters."""
    one, other = Run("gs://bucket/one"), Run("gs://bucket/other")
    stages = [
        Stage(name, square, [Unit(0, Number(number))])
        for name in ("pool", "leaks-00", "A_stage.of many words" * 5)
        for number in (1, 2)
    ]
    names = [
        Engine(["--runner=X", *words]).beam_options(True, job_name(run, stage)).view_as(GoogleCloudOptions).job_name
        for words in ((), ("--job_name=photos",), ("--job_name", "photos-2"))
        for run in (one, other)
        for stage in stages
    ]
    assert len(set(names)) == len(names) == 36
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names), names
    assert names[0].startswith("granary-pool-")
    assert names[12].startswith("photos-pool-")
    assert job_name(one, stages[0]) == job_name(one, stages[0])


class Job:
    """What a runner returns, with the end it was given."""

    def __init__(self, end):
        self.end, self.cancelled = end, False

    def wait_until_finish(self):
        if self.end is KeyboardInterrupt:
            raise KeyboardInterrupt
        return self.end

    def cancel(self):
        self.cancelled = True


def test_an_interrupted_remote_job_is_cancelled_and_a_cancelled_one_is_an_error():
    job = Job(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        wait(job)
    assert job.cancelled
    with pytest.raises(RuntimeError, match="CANCELLED"):
        wait(Job(PipelineState.CANCELLED))
    for end in (None, PipelineState.DONE):
        wait(Job(end))


@pytest.mark.parametrize("words", [["--runner=DataflowRunner"], ["--runner", "DataflowRunner"]])
def test_dataflow_is_given_no_paths_of_this_machine(words):
    there = Source(path="gs://bucket/pool/", name="pool")
    here = Source(path="/photos/", name="pool")
    engine = Engine(words)
    engine.check_reach(Run("gs://bucket/run", {"pool": [there, Source(path="hf:org/cats", name="cats")]}))
    with pytest.raises(UserError, match="out: runs/one is on this machine"):
        engine.check_reach(Run("runs/one", {"pool": [there]}))
    with pytest.raises(UserError, match="pool: /photos/ is on this machine"):
        engine.check_reach(Run("gs://bucket/run", {"pool": [there, here]}))
    for other in ((), ("--runner=PortableRunner",)):
        Engine(other).check_reach(Run("runs/one", {"pool": [here]}))


@pytest.mark.parametrize(
    ("options", "local"),
    [
        ((), True),
        (("--direct_num_workers=3",), True),
        (("--runner=DataflowRunner",), False),
        (("--runner", "X"), False),
    ],
)
def test_the_local_runner_is_always_named(options, local):
    engine = Engine(options, workers=2)
    assert engine.local is local
    if local:
        chosen = engine.beam_options(parallel=True).get_all_options()
        assert chosen["runner"] == "FnApiRunner"
        assert chosen["direct_num_workers"] == (3 if options else 2)
