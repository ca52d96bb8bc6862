"""The ledger of annotations and the dead letters."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pyarrow as pa

from granary.curation.dense.steps.records import read_records
from granary.curation.dense.steps.shards import notes_of, shard_paths
from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.run import Marker, NoJob, Output, Run, read_groups
from granary.curation.store import schema, storage


@dataclasses.dataclass(frozen=True)
class LedgerUnit:
    """Which annotations are written to the ledger.

    Args:
        unit: number of their shard.
        shard: SHA-256 of the shard.
        records: digest of the records.
    """

    unit: int
    shard: str
    records: str


def write_ledger(run: Run, job: LedgerUnit, output: Output) -> None:
    """Write one row per annotation of a unit: kept, dropped or dead, and why."""
    unit = job.unit
    kept = {}
    for table in read_groups(shard_paths(run, "shards", "data")[unit], ["file", "id", "image"]):
        for batch in table.to_batches(max_chunksize=1):
            for row in batch.to_pylist():
                kept[row["file"]] = {"id": row["id"], "sha256": hashlib.sha256(row["image"]["bytes"]).hexdigest()}
    decided = {
        name: (status, error, message) for name, status, _, error, message in _notes(run, unit) if status != "part"
    }
    rows = []
    for record in read_records(run, unit):
        name = record["name"]
        status, error, message = decided.get(name, ("kept", "", ""))
        stage, reason = ("read", f"{error}: {message}") if error else ("shards", "packed")
        fact = {"uri": f"annotations/{name}", "role": "pool", "status": status, "stage": stage, "reason": reason}
        rows.append({**fact, **kept.get(name, {}), "seed_ids": [], "similarities": []})
        output.counters[status] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def _notes(run: Run, unit: int) -> list[list[Any]]:
    marker = run.parts("shards")[unit].removesuffix(".parquet") + ".done"
    return list(Marker.parse(storage.read_bytes(marker)).notes)


def write_dead_letters(run: Run, job: NoJob, output: Output) -> None:
    """Collect what was lost, of every stage, a unit at a time."""
    for stage, named in (("shards", "read"), ("texts", "texts")):
        for notes in notes_of(run, stage):
            letters = (
                DeadLetter(f"annotations/{name}", named, error, message, part)
                for name, status, part, error, message in notes
                if status != "dropped"
            )
            dead_letters.write_dead_letters(letters, output)
    output.begin(schema.DEAD_LETTER)
