"""The plan: shards are cut as one long list would be, and the order does not depend on how the work is shared out."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.runs import buckets, tables
from granary.curation.runs.run import Output, Run, Stage, Unit, close_stage, run_unit
from granary.curation.runs.spans import spans
from granary.curation.runs.vectors import Layout
from granary.curation.steps import plan
from granary.curation.steps.verdicts import VERDICT
from granary.curation.store import schema, storage
from granary.curation.store.sampling import priority

PART = 40  # rows of a part of the pool


@dataclasses.dataclass(frozen=True)
class Number:
    """The job of a stage made up for a test."""

    number: int


def one_by_one(sizes, most_rows, most_bytes):
    """Cut a list as it is told: a sample that does not fit opens a shard."""
    shards = []
    for size in sizes:
        if not shards or len(shards[-1]) == most_rows or sum(shards[-1]) + size > most_bytes:
            shards.append([])
        shards[-1].append(size)
    return [len(shard) for shard in shards]


@pytest.mark.parametrize("seed", range(8))
def test_shards_are_cut_as_one_by_one_however_the_list_is_broken(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 30, rng.integers(0, 60))
    sizes[rng.random(len(sizes)) < 0.1] = 500
    most_rows, most_bytes = int(rng.integers(1, 9)), int(rng.integers(1, 120))
    pieces = np.split(sizes, np.sort(rng.integers(0, len(sizes) + 1, 5)))
    assert list(plan.cut(pieces, most_rows, most_bytes)) == one_by_one(sizes.tolist(), most_rows, most_bytes)


def write_stage(run, name, tables_, per_file=1):
    """Write tables as the parts of a finished stage, some row groups in each file."""
    files = [tables_[start : start + per_file] for start in range(0, len(tables_), per_file)]

    def write(run, job, output):
        for table in files[job.number]:
            output.write(table)

    stage = Stage(name, write, [Unit(number, Number(number)) for number in range(len(files))])
    finish(run, stage)


def finish(run, stage):
    for unit in stage.units:
        run_unit(run, stage, unit)
    close_stage(run, stage)


def rows(role, first, count, label=None):
    """Return pool parts of made-up facts; the size of a row is its number."""
    numbers = range(first, first + count)
    columns = {
        "uri": [f"{role}/{n}" for n in numbers],
        "source": [0] * count,
        "id": [f"{n * 2654435761 % 2**32:08x}" for n in numbers],
        "size": list(numbers),
        "label": [label(n) if label else None for n in numbers],
        "status": ["ok"] * count,
    }
    fields = pa.schema([*plan.SAMPLE_FACTS, ("status", pa.string())])
    return pa.table({name: columns.get(name, [None] * count) for name in fields.names}, fields)


@pytest.fixture
def planned(tmp_path):
    """Return a run with a pool of some parts, two thirds of it kept, and seeds, some of them of the pool."""

    def make(parts, label=None):
        run = Run(str(tmp_path / f"run-{parts}"))
        write_stage(run, "pool", [rows("pool", part * PART, PART, label) for part in range(parts)])
        status = ["kept" if n % 3 else "dropped" for n in range(PART)]
        blank = {name: [None] * PART for name in VERDICT.names}
        verdicts = pa.table({**blank, "status": status, "seed_ids": [["s"]] * PART}, VERDICT)
        write_stage(run, "verdicts", [verdicts] * parts, spans(parts)[0][1])
        write_stage(run, "seeds", [rows("seeds", PART // 2, PART), rows("seeds", parts * PART, 9)])
        return run

    return make


def ordered(run, per_range, count, order="hash"):
    """Run the stages of the plan with so many parts in a range and so many buckets; returns the samples in order."""
    roles = ["pool", "seeds"]
    blocks = [(role, block) for role in roles for block in Layout.of(run, role).blocks(per_range * PART)]
    if order == "hash":
        jobs = [plan.CarryKept(role, block, (0,), 7, count) for role, block in blocks]
        finish(run, Stage(plan.CARRIED, plan.carry_kept, [Unit(n, job) for n, job in enumerate(jobs)]))
        units = [Unit(bucket, plan.OrderBucket(bucket)) for bucket in range(count)]
        finish(run, Stage(plan.ORDERED, plan.order_bucket, units))
    else:
        jobs = [plan.GatherRange(role, block, (0,)) for role, block in blocks]
        finish(run, Stage(plan.ORDERED, plan.list_kept, [Unit(n, job) for n, job in enumerate(jobs)]))
    return run.read_all(plan.ORDERED)


def expected(run, order):
    """Return the uris of the dataset by one pass over all rows."""
    pool = run.read_all("pool", ["id", "uri"]).to_pylist()
    statuses = run.read_all("verdicts", ["status"])["status"].to_pylist()
    kept = [row for row, status in zip(pool, statuses, strict=True) if status == "kept"]
    first = {}
    for row in [*kept, *run.read_all("seeds", ["id", "uri"]).to_pylist()]:
        first.setdefault(row["id"], row["uri"])
    ids = sorted(first, key=lambda name: (priority(7, [name])[0], name)) if order == "hash" else list(first)
    return [first[name] for name in ids]


@pytest.mark.parametrize("order", ["hash", "pool"])
def test_the_order_is_that_of_one_list_whatever_the_ranges_and_buckets(planned, order):
    run = planned(3)
    tables_ = [ordered(run, *cut, order) for cut in ((9, 1), (2, 4))]
    assert tables_[0]["uri"].to_pylist() == expected(run, order)
    assert all(table.equals(tables_[0]) for table in tables_)


def test_positions_of_the_order_are_read_across_files_and_row_groups(planned, monkeypatch):
    monkeypatch.setattr(plan, "ROW_GROUP", 4)
    run = planned(3)
    whole = ordered(run, 1, 5)
    for start in range(0, whole.num_rows, 17):
        for stop in (start, start + 1, start + 30):
            read = plan.planned_rows(run, start, min(stop, whole.num_rows))
            assert read.to_pylist() == whole.slice(start, stop - start).to_pylist()


@pytest.mark.parametrize(("count", "names"), [(4, ["0", "1", "2", "3"]), (20, [])])
def test_classes_are_stated_by_the_cut_unless_they_are_too_many(planned, count, names, monkeypatch):
    monkeypatch.setattr(schema, "MOST_CLASSES", 4)
    run = planned(2, lambda n: str(n % count))
    ordered(run, 9, 2)
    finish(run, Stage(plan.CUT, plan.cut_shards, [Unit(0, plan.CutShards(100, 10**9))]))
    assert plan.planned_classes(run) == names


def test_a_unit_opens_and_holds_its_own_share_whatever_the_pool(planned, monkeypatch):
    opened, held, now = collections.Counter(), collections.Counter(), [""]
    open_read, write = storage.open_read, Output.write

    def counting(url):
        opened[now[0], url.rsplit("/", 2)[-2]] += 1
        return open_read(url)

    def measuring(output, table, *options):
        held[now[0]] += table.nbytes
        return write(output, table, *options)

    monkeypatch.setattr(tables.storage, "open_read", counting)
    monkeypatch.setattr(Output, "write", measuring)
    most = []
    for parts in (4, 8):
        run = planned(parts)
        blocks = Layout.of(run, "pool").blocks(2 * PART)
        stages = [
            Stage(
                plan.CARRIED,
                plan.carry_kept,
                [Unit(n, plan.CarryKept("pool", block, (), 7, parts)) for n, block in enumerate(blocks)],
            ),
            Stage(plan.ORDERED, plan.order_bucket, [Unit(n, plan.OrderBucket(n)) for n in range(parts)]),
        ]
        seen = collections.Counter()
        for stage in stages:
            for unit in stage.units:
                opened.clear()
                held.clear()
                now[0] = stage.name
                run_unit(run, stage, unit)
                for (name, folder), count in opened.items():
                    seen[f"{name} opens {folder}"] = max(seen[f"{name} opens {folder}"], count)
                held_by = f"{stage.name} holds"
                seen[held_by] = max(seen[held_by], held[stage.name])
            close_stage(run, stage)
        most.append(seen)
    small, large = most
    assert large["plan-rows opens pool"] == small["plan-rows opens pool"] == 2
    assert large["plan-order opens plan-rows"] == 8 / 2
    assert "plan-order opens pool" not in large
    assert large["plan-rows holds"] < 1.2 * small["plan-rows holds"]
    assert large["plan-order holds"] < 1.6 * small["plan-order holds"]  # what one bucket gets is a draw


def test_leading_bits_keep_the_order_and_every_bucket():
    keys = np.sort(priority(0, np.arange(2000)))
    for count in (1, 2, 7, 100):
        bucket = buckets.leading(keys, count)
        assert (np.diff(bucket) >= 0).all()
        assert set(bucket.tolist()) == set(range(count))
    edge = np.array([0, 2**64 - 1], np.uint64)
    assert buckets.leading(edge, buckets.MOST_BUCKETS).tolist() == [0, buckets.MOST_BUCKETS - 1]


def test_rows_are_carried_once_in_their_order(tmp_path):
    run = Run(str(tmp_path))
    index = [np.arange(0, 30), np.arange(30, 31), np.arange(31, 60)]

    def write(run, job, output):
        mine = index[job.number]
        buckets.carry(pa.table({"index": mine}), mine * 7 % 5, 5, output)

    finish(run, Stage("rows", write, [Unit(number, Number(number)) for number in range(3)]))
    for bucket in range(5):
        assert buckets.carried(run, "rows", bucket)["index"].to_pylist() == [
            n for n in range(60) if n * 7 % 5 == bucket
        ]
    assert all(pq.ParquetFile(file).num_row_groups == 5 for file in Path(run.url, "rows").glob("*.parquet"))
