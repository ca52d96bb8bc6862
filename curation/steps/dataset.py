"""The outputs: which sample goes into which shard, the shards, the ledger, the dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.runs.run import Output, Run, read_groups, read_table
from granary.curation.runs.vectors import Layout
from granary.curation.sources import Reader, failure
from granary.curation.steps.embed import FACTS, Row, check_lost, check_unchanged
from granary.curation.store import schema
from granary.curation.store.sampling import priority
from granary.curation.store.schema import LEDGER

GROUP_BYTES = 128 << 20  # a row group is cut short when its pictures are large
SAMPLE_FACTS = [field for field in FACTS if field.name not in ("status", "reason", "message")]
COLUMNS = [field.name for field in SAMPLE_FACTS]
EVIDENCE = [LEDGER.field("seed_ids"), LEDGER.field("similarities")]
PLAN = pa.schema([("role", pa.string()), *SAMPLE_FACTS, *EVIDENCE])


def plan(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Order the kept samples and cut them into shards: row group i is shard i."""
    kept = pa.concat_tables([PLAN.empty_table(), *_kept(run), *_as_is(run, arguments["as_is"])])
    ids = kept["id"].to_numpy(zero_copy_only=False).astype(str)
    _, first = np.unique(ids, return_index=True)
    kept = kept.take(pa.array(np.sort(first)))
    if arguments["order"] == "hash":
        ids = kept["id"].to_numpy(zero_copy_only=False).astype(str)
        kept = kept.take(pa.array(np.lexsort((ids, priority(arguments["seed"], ids)))))
    for shard in _cut(kept, arguments["rows"], arguments["max_bytes"]):
        output.write(shard)
        output.counters["shards"] += 1
    if output.writer is None:
        output.write(PLAN.empty_table())


def _kept(run: Run) -> Iterator[pa.Table]:
    """Yield the kept rows of every pool part."""
    layout = Layout.of(run, "pool")
    for part, verdicts in enumerate(read_groups(run.parts("verdicts")[0], ["status", "seed_ids", "similarities"])):
        mask = pc.equal(verdicts["status"], "kept")
        if pc.any(mask).as_py():
            rows = read_table(layout.parts[part], COLUMNS).filter(mask)
            rows = rows.add_column(0, "role", pa.array(["pool"] * rows.num_rows))
            evidence = verdicts.filter(mask)
            yield (
                rows.append_column("seed_ids", evidence["seed_ids"])
                .append_column("similarities", evidence["similarities"])
                .cast(PLAN)
            )


def _as_is(run: Run, sets: list[int]) -> Iterator[pa.Table]:
    """Yield the readable seeds of the sets that go into the dataset themselves."""
    for part in run.parts("seeds") if sets else []:
        rows = read_table(part, [*COLUMNS, "status"])
        mine = pc.and_(pc.equal(rows["status"], "ok"), pc.is_in(rows["source"], pa.array(sets, pa.int16())))
        rows = rows.filter(mine).drop_columns(["status"])
        empty = pa.array([[]] * rows.num_rows, pa.list_(pa.string()))
        rows = rows.add_column(0, "role", pa.array(["seeds"] * rows.num_rows, pa.string()))
        yield (
            rows.append_column("seed_ids", empty)
            .append_column("similarities", empty.cast(pa.list_(pa.float32())))
            .cast(PLAN)
        )


def _cut(rows: pa.Table, most_rows: int, most_bytes: int) -> Iterator[pa.Table]:
    sizes, start, total = rows["size"].to_numpy(), 0, 0
    for position, size in enumerate(sizes):
        if position > start and (position - start == most_rows or total + size > most_bytes):
            yield rows.slice(start, position - start)
            start, total = position, 0
        total += size
    if start < rows.num_rows:
        yield rows.slice(start)


def write_shard(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write one shard: the original bytes, read again and checked against their hash.

    What cannot be read any more, or changed since it was hashed, is left out and noted in the marker.

    Raises:
        TooManyUnreadable: see `check_lost`.
    """
    rows = read_table(run.parts("plan")[0], group=arguments["shard"])
    target = schema.arrow_schema(schema.curated_features())
    group: list[dict[str, Any]] = []
    size = 0
    for row in check_lost(_reread(run, rows, arguments["max_bytes"]), arguments["max_unreadable"]):
        if row.lost:
            output.notes.append([row.facts["uri"], row.facts["reason"], row.facts["message"]])
            continue
        group.append(row.facts)
        size += len(row.facts["image"]["bytes"])
        if len(group) == arguments["row_group"] or size >= GROUP_BYTES:
            output.write(pa.Table.from_pylist(group, target), compression="snappy")
            group, size = [], 0
    if group:
        output.write(pa.Table.from_pylist(group, target), compression="snappy")
    output.begin(target, "snappy")  # `datasets` cannot load a row group without rows


def _reread(run: Run, rows: pa.Table, max_bytes: int) -> Iterator[Row]:
    """Yield a sample of the dataset for each row of the plan, or uri, reason and message of what is lost."""
    with ExitStack() as stack:
        readers: dict[tuple[str, int], Reader] = {}
        for row in rows.to_pylist():
            try:
                data = _read_again(run, row, readers, stack, max_bytes)
            except OSError as error:
                reason, message = failure(error)
                yield Row({"uri": row["uri"], "reason": reason, "message": message}, lost=True)
            else:
                yield Row(_sample(run, row, data))


def _read_again(
    run: Run, row: Mapping[str, Any], readers: dict[tuple[str, int], Reader], stack: ExitStack, max_bytes: int
) -> bytes:
    key = (row["role"], row["source"])
    if key not in readers:
        readers[key] = stack.enter_context(Reader(run.sources[key[0]][key[1]], max_bytes))
    data = readers[key].read(row["path"], row["offset"], row["size"])
    check_unchanged(data, row["sha256"])
    return data


def _sample(run: Run, row: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    name = run.sources[row["role"]][row["source"]].name
    kept = ("id", "width", "height", "label", "captions", "metadata", "seed_ids", "similarities")
    return {
        **{column: row[column] for column in kept},
        "source": {"name": name, "uri": row["uri"]},
        "image": {"bytes": data, "path": row["uri"].rsplit("/", 1)[-1]},
    }


def write_ledger(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Write the ledger rows of one part of the pool, or of the seeds that go into the dataset."""
    role, part, lost = arguments["role"], arguments["part"], arguments["lost"]
    facts = read_table(run.parts(role)[part], ["uri", "id", "sha256", "status", "source", "reason", "message"])
    if role == "pool":
        rows = [
            {**fact, **verdict, "role": "pool"}
            for fact, verdict in zip(
                facts.to_pylist(), read_table(run.parts("verdicts")[0], group=part).to_pylist(), strict=True
            )
        ]
    else:
        rows = [_seed_verdict(fact) for fact in facts.to_pylist() if fact["source"] in arguments["as_is"]]
    for row in rows:
        if row["uri"] in lost:
            row |= {"status": "dead", "stage": "shards", "reason": ": ".join(lost[row["uri"]])}
        output.counters[f"{row['role']} {row['status']}"] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def _seed_verdict(fact: Mapping[str, Any]) -> dict[str, Any]:
    dead = fact["status"] != "ok"
    reason = f"{fact['reason']}: {fact['message']}" if dead else "a seed, taken as it is"
    return {
        **fact,
        "role": "seed",
        "status": "dead" if dead else "kept",
        "stage": "decode" if dead else "seeds",
        "reason": reason,
        "seed_ids": [],
        "similarities": [],
    }


def write_dead_letters(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Collect what could not be read, of every role and stage."""
    rows = [
        row
        for role in arguments["roles"]
        for url in run.parts(role)
        for row in _dead(read_table(url, ["uri", "status", "reason", "message"]), "decode")
    ]
    if run.parts("unreadable"):
        unreadable = run.read("unreadable", 0)
        uris = Layout.of(run, "pool").take(unreadable["index"].to_numpy(), ["uri"])["uri"].to_pylist()
        rows += [
            {"uri": uri, "stage": row["stage"], "error": row["reason"], "message": row["message"]}
            for uri, row in zip(uris, unreadable.to_pylist(), strict=True)
        ]
    rows += [
        {"uri": uri, "stage": "shards", "error": error, "message": message}
        for uri, (error, message) in sorted(arguments["lost"].items())
    ]
    for row in rows:
        output.counters[row["error"]] += 1
    output.write(pa.Table.from_pylist([{"part": "", **row} for row in rows], schema.DEAD_LETTER))


def _dead(table: pa.Table, stage: str) -> list[dict[str, Any]]:
    rows = table.filter(pc.equal(table["status"], "dead")).to_pylist()
    return [{"uri": row["uri"], "stage": stage, "error": row["reason"], "message": row["message"]} for row in rows]
