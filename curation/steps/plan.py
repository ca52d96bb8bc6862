"""Which sample goes into which shard: kept rows carried by the hash of their order, ordered, and cut into shards.

The order is that of the whole dataset and the cuts follow from it alone, so neither depends on how many ranges and
buckets the work is shared out to.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from granary.curation.runs.buckets import carried, carry, leading
from granary.curation.runs.run import Output, Run
from granary.curation.runs.spans import read_part
from granary.curation.runs.tables import read_rows, read_table
from granary.curation.runs.vectors import Block, Layout
from granary.curation.steps.embed import FACTS
from granary.curation.store import schema, storage
from granary.curation.store.sampling import priority
from granary.curation.store.schema import LEDGER, QUALITY

CARRIED, ORDERED, CUT = "plan-rows", "plan-order", "plan"  # the stages
ROW_GROUP = 1024  # of the ordered rows: a shard reads those that hold its own
SAMPLE_FACTS = [field for field in FACTS if field.name not in ("unread", "status", "reason", "message", *QUALITY.names)]
COLUMNS = [field.name for field in SAMPLE_FACTS]
EVIDENCE = [LEDGER.field("seed_ids"), LEDGER.field("similarities")]
PLAN = pa.schema([("role", pa.string()), *SAMPLE_FACTS, *EVIDENCE])
CLASSES = b"granary.classes"  # key of the plan's schema

Role = Literal["pool", "seeds"]


@dataclasses.dataclass(frozen=True)
class GatherRange:
    """The job of `carry_kept` and `list_kept`.

    Args:
        role: whose samples.
        parts: of the role.
        as_is: numbers of the seed sets that go into the dataset themselves.
    """

    role: Role
    parts: Block
    as_is: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class CarryKept(GatherRange):
    """The job of `carry_kept`.

    Args:
        seed: of the run.
        buckets: of the hash by which samples are ordered.
    """

    seed: int = 0
    buckets: int = 1


def carry_kept(run: Run, job: CarryKept, output: Output) -> None:
    """Write the kept samples of a range by the leading bits of the hash that orders them."""
    rows = _gathered(run, job)
    keys = priority(job.seed, rows["id"].to_numpy(zero_copy_only=False))
    carry(rows.append_column("key", pa.array(keys)), leading(keys, job.buckets), job.buckets, output)


@dataclasses.dataclass(frozen=True)
class OrderBucket:
    """The job of `order_bucket`.

    Args:
        bucket: of the hash.
    """

    bucket: int


def order_bucket(run: Run, job: OrderBucket, output: Output) -> None:
    """Order the samples of a bucket by hash; of those with the same id the pool's stays, then the first."""
    rows = carried(run, CARRIED, job.bucket)
    ids = rows["id"].to_numpy(zero_copy_only=False).astype(str)
    _, first = np.unique(ids, return_index=True)
    order = first[np.lexsort((ids[first], rows["key"].to_numpy()[first]))]
    _write_groups(rows.drop_columns(["key"]).take(pa.array(order)), output)


def list_kept(run: Run, job: GatherRange, output: Output) -> None:
    """Write the kept samples of a range as they were read; a seed with the id of an earlier sample is left out."""
    rows = _gathered(run, job)
    if job.role == "seeds":
        ids = rows["id"].to_numpy(zero_copy_only=False).astype(str)
        new = np.zeros(len(ids), bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for earlier in _earlier_ids(run, job):
            new &= ~np.isin(ids, earlier)
        rows = rows.filter(pa.array(new))
    _write_groups(rows, output)


def _earlier_ids(run: Run, job: GatherRange) -> Iterator[NDArray[np.str_]]:
    """Yield the ids of the samples before a range of seeds, part by part."""
    for part in range(len(run.parts("pool"))):
        kept = pc.equal(read_part(run, "verdicts", part, ["status"])["status"], "kept")
        yield read_table(run.parts("pool")[part], ["id"])["id"].filter(kept).to_numpy(zero_copy_only=False).astype(str)
    for rows in _as_is(run, dataclasses.replace(job, parts=(0, job.parts[0]))):
        yield rows["id"].to_numpy(zero_copy_only=False).astype(str)


def _write_groups(rows: pa.Table, output: Output) -> None:
    for start in range(0, max(1, rows.num_rows), ROW_GROUP):
        output.write(rows.slice(start, ROW_GROUP))


@dataclasses.dataclass(frozen=True)
class CutShards:
    """The job of `cut_shards`.

    Args:
        rows: most samples in a shard.
        max_bytes: most image bytes in a shard; one larger image is a shard of its own.
    """

    rows: int
    max_bytes: int


def cut_shards(run: Run, job: CutShards, output: Output) -> None:
    """Cut the ordered samples into shards: a row with the positions of each; the schema states the classes."""
    parts = run.parts(ORDERED)
    rows = np.fromiter(cut((_sizes(url) for url in parts), job.rows, job.max_bytes), np.int64)
    stops = np.cumsum(rows)
    table = pa.table({"start": stops - rows, "stop": stops})
    output.counters["shards"] = len(rows)
    output.write(table.replace_schema_metadata({CLASSES: json.dumps(_class_names(parts))}))


def _sizes(url: str) -> NDArray[np.int64]:
    return read_table(url, ["size"])["size"].to_numpy()


def _class_names(parts: Iterable[str]) -> list[str]:
    """Return the names of the classes among the labels of files; no more labels are held than there may be classes."""
    labels: set[str | None] = set()
    for url in parts:
        labels |= set(pc.unique(read_table(url, ["label"])["label"]).to_pylist())
        if len(labels) > schema.MOST_CLASSES + len(schema.NO_CLASS) + 1:
            return []
    return schema.class_names(labels)


def cut(sizes: Iterable[NDArray[np.int64]], most_rows: int, most_bytes: int) -> Iterator[int]:
    """Yield how many of the samples that follow one another make each shard; none where there are no samples.

        >>> list(cut([np.array([5, 4]), np.array([3, 20, 1])], most_rows=3, most_bytes=10))
        [2, 1, 1, 1]

    Args:
        sizes: bytes of the samples in order, in pieces cut anywhere; the cuts of the shards do not depend on it.
        most_rows: in a shard.
        most_bytes: in a shard; one larger sample is a shard of its own.
    """
    waiting = np.empty(0, np.int64)
    for piece in sizes:
        waiting = np.concatenate([waiting, piece])
        ends, start = np.cumsum(waiting), 0
        while start < len(waiting):
            before = int(ends[start - 1]) if start else 0
            full = int(np.searchsorted(ends, before + most_bytes, side="right"))
            stop = max(start + 1, min(start + most_rows, full))
            if stop >= len(waiting):
                break  # what comes next may belong to it
            yield stop - start
            start = stop
        waiting = waiting[start:]
    if len(waiting):
        yield len(waiting)


def planned_classes(run: Run) -> list[str]:
    """Return the names of the classes of the kept samples; none where labels stay text."""
    with storage.open_read(run.parts(CUT)[0]) as file:
        return [str(name) for name in json.loads(pq.read_schema(file).metadata[CLASSES])]


def planned_rows(run: Run, start: int, stop: int) -> pa.Table:
    """Return the samples at the positions [start, stop) of the order, with the columns of PLAN."""
    layout = Layout.of(run, ORDERED)
    tables = [PLAN.empty_table()]
    first = max(0, int(np.searchsorted(layout.starts, start, side="right")) - 1)
    for part in range(first, len(layout.parts)):
        low, high = start - int(layout.starts[part]), stop - int(layout.starts[part])
        if high <= 0:
            break
        tables.append(read_rows(layout.parts[part], max(0, low), high))
    return pa.concat_tables(tables)


def _gathered(run: Run, job: GatherRange) -> pa.Table:
    gather = _kept if job.role == "pool" else _as_is
    return pa.concat_tables([PLAN.empty_table(), *gather(run, job)])


def _kept(run: Run, job: GatherRange) -> Iterator[pa.Table]:
    """Yield the kept rows of every pool part of a range."""
    parts = run.parts("pool")
    for part in range(*job.parts):
        verdicts = read_part(run, "verdicts", part, ["status", "seed_ids", "similarities"])
        mask = pc.equal(verdicts["status"], "kept")
        if pc.any(mask).as_py():
            rows = read_table(parts[part], COLUMNS).filter(mask)
            rows = rows.add_column(0, "role", pa.array(["pool"] * rows.num_rows))
            evidence = verdicts.filter(mask)
            yield (
                rows.append_column("seed_ids", evidence["seed_ids"])
                .append_column("similarities", evidence["similarities"])
                .cast(PLAN)
            )


def _as_is(run: Run, job: GatherRange) -> Iterator[pa.Table]:
    """Yield the readable seeds, in parts of a range, of the sets that go into the dataset themselves."""
    for part in run.parts("seeds")[slice(*job.parts)]:
        rows = read_table(part, [*COLUMNS, "status"])
        mine = pc.and_(pc.equal(rows["status"], "ok"), pc.is_in(rows["source"], pa.array(job.as_is, pa.int16())))
        rows = rows.filter(mine).drop_columns(["status"])
        empty = pa.array([[]] * rows.num_rows, pa.list_(pa.string()))
        rows = rows.add_column(0, "role", pa.array(["seeds"] * rows.num_rows, pa.string()))
        yield (
            rows.append_column("seed_ids", empty)
            .append_column("similarities", empty.cast(pa.list_(pa.float32())))
            .cast(PLAN)
        )
