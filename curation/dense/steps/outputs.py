"""The ledger of annotations and the dead letters."""

from __future__ import annotations

import dataclasses
import hashlib

import pyarrow as pa

from granary.curation.dense.steps.notes import Note, read_notes
from granary.curation.dense.steps.records import read_records
from granary.curation.runs import dead_letters
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.run import NoJob, Output, Run
from granary.curation.runs.tables import read_groups
from granary.curation.store import schema


@dataclasses.dataclass(frozen=True)
class WriteLedger:
    """The job of `write_ledger`.

    Args:
        unit: row group of the records, and number of their shard.
        records: digest of the records.
        shard: digest of the shard.
    """

    unit: int
    records: str
    shard: str


def write_ledger(run: Run, job: WriteLedger, output: Output) -> None:
    """Write one row per annotation of a unit: kept, dropped or dead, and why."""
    images = _packed(image_shards(run)[job.unit])
    lost = {note.name: note for note in read_notes(run.parts("shards")[job.unit]) if note.status != "part"}
    rows = []
    for record in read_records(run, job.unit):
        name = record["name"]
        status, stage, reason = _verdict(lost.get(name))
        decided = {"uri": f"annotations/{name}", "role": "pool", "status": status, "stage": stage, "reason": reason}
        rows.append({**decided, **images.get(name, {}), "seed_ids": [], "similarities": []})
        output.counters[status] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def _packed(shard: str) -> dict[str, dict[str, str]]:
    """Return id and hash of each image of a shard, by its annotation; one picture is held at a time."""
    images = {}
    for table in read_groups(shard, ["file", "id", "image"]):
        for batch in table.to_batches(max_chunksize=1):
            for row in batch.to_pylist():
                images[row["file"]] = {"id": row["id"], "sha256": hashlib.sha256(row["image"]["bytes"]).hexdigest()}
    return images


def _verdict(lost: Note | None) -> tuple[str, str, str]:
    """Return status, stage and reason of an annotation.

    Args:
        lost: why all of it was lost; None when it was packed.
    """
    return (lost.status, "read", f"{lost.error}: {lost.message}") if lost else ("kept", "shards", "packed")


def write_dead_letters(run: Run, job: NoJob, output: Output) -> None:
    """Collect what was lost, of every stage, a unit at a time."""
    for stage, name in (("shards", "read"), ("texts", "texts")):
        for part in run.parts(stage):
            lost = (note for note in read_notes(part) if note.status != "dropped")
            letters = (DeadLetter(f"annotations/{n.name}", name, n.error, n.message, n.part) for n in lost)
            dead_letters.write_dead_letters(letters, output)
    output.begin(schema.DEAD_LETTER)
