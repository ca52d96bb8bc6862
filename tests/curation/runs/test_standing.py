"""What a stage asks of the storage to know which units are finished: one listing, and each marker once."""

from __future__ import annotations

import collections
import dataclasses
import io
import threading
import time

import fsspec
import pyarrow as pa
import pytest
from rich.console import Console

from granary.curation.runs.run import Run, Stage, Unit, close_stage, run_unit, standing
from granary.curation.store import storage
from granary.pipelines.engine.progress import Progress
from granary.pipelines.engine.units import Engine, Runner


@dataclasses.dataclass(frozen=True)
class Number:
    """The job of a unit: a number."""

    number: int


def write(run, job, output):
    output.write(pa.table({"number": [job.number]}))


def stage_of(count, **options):
    return Stage("numbers", write, [Unit(i, Number(i)) for i in range(count)], **options)


@pytest.fixture
def asked(monkeypatch):
    """How often each function of the storage was called from outside of it."""
    counts = collections.Counter()

    def counted(name, inner):
        def counting(*args, **options):
            counts[name] += 1
            return inner(*args, **options)

        return counting

    for name in ("read_bytes", "size", "sizes", "names", "exists"):
        monkeypatch.setattr(storage, name, counted(name, getattr(storage, name)))
    return counts


def runner_of(url):
    return Runner(Run(url), Engine(workers=1), Progress(Console(file=io.StringIO(), quiet=True)))


@pytest.mark.parametrize("target", ["", "dataset/data"])
def test_finished_units_cost_one_request_each_and_the_rest_does_not_grow(tmp_path, asked, target):
    others = []
    for count in (3, 30):
        stage, run = stage_of(count, target=target), Run(str(tmp_path / str(count)))
        for unit in stage.units:
            run_unit(run, stage, unit)
        asked.clear()
        runner_of(run.url).stage(stage)
        assert asked.pop("read_bytes") == count
        assert asked["size"] == asked["exists"] == 0
        others.append(dict(asked))
    assert others[0] == others[1]


def test_units_that_never_ran_cost_a_listing_alone(tmp_path, asked):
    for count in (3, 30):
        asked.clear()
        assert standing(Run(str(tmp_path)), stage_of(count)) == {}
        assert asked == {"sizes": 1}


def test_what_stands_is_what_is_whole_and_of_these_inputs(tmp_path):
    stage, run = stage_of(5), Run(str(tmp_path))
    for unit in stage.units:
        run_unit(run, stage, unit)
    markers = close_stage(run, stage)
    assert standing(run, stage) == dict(enumerate(markers))
    folder = tmp_path / "numbers"
    (folder / "part-00000-of-00005.parquet").unlink()
    (folder / "part-00001-of-00005.done").unlink()
    (folder / "part-00002-of-00005.done").write_bytes(b"no marker")
    with (folder / "part-00003-of-00005.parquet").open("ab") as part:
        part.write(b"more")
    assert standing(run, stage) == {4: markers[4]}
    assert standing(run, stage_of(5, inputs=["others"])) == {}
    assert runner_of(run.url).stage(stage) == markers
    assert standing(run, stage) == dict(enumerate(markers))


def test_markers_of_a_far_store_are_read_side_by_side(monkeypatch):
    stage, run = stage_of(12), Run("memory://standing")
    try:
        for unit in stage.units:
            run_unit(run, stage, unit)
        at_once, now, lock, inner = [], [0], threading.Lock(), storage.read_bytes

        def slow(url, *args):
            with lock:
                now[0] += 1
                at_once.append(now[0])
            time.sleep(0.05)
            with lock:
                now[0] -= 1
            return inner(url, *args)

        monkeypatch.setattr(storage, "read_bytes", slow)
        found = standing(run, stage)
        assert [found[unit.index].rows for unit in stage.units] == [1] * 12
        assert max(at_once) > 4
        at_once.clear()
        assert close_stage(run, stage) == [found[i] for i in range(12)]
        assert max(at_once) > 4
        assert storage.sizes(run.path("numbers")) == {
            name: storage.size(run.path("numbers", name)) for name in storage.names(run.path("numbers"))
        }
    finally:
        fsspec.filesystem("memory").rm("/standing", recursive=True)
