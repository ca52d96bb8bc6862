"""The outputs: which sample goes into which shard, the shards, the ledger, the dead letters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import DeadLetter, dead_rows
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import DEAD, Output, Run, undigested
from granary.curation.runs.spans import read_part
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Layout
from granary.curation.sources import Reader, failure
from granary.curation.steps.embed import FACTS
from granary.curation.steps.unreadable import check_lost, check_unchanged
from granary.curation.store import schema, storage
from granary.curation.store.sampling import priority
from granary.curation.store.schema import CURATED_LEDGER, LEDGER, QUALITY

SAMPLE_FACTS = [field for field in FACTS if field.name not in ("unread", "status", "reason", "message", *QUALITY.names)]
COLUMNS = [field.name for field in SAMPLE_FACTS]
EVIDENCE = [LEDGER.field("seed_ids"), LEDGER.field("similarities")]
PLAN = pa.schema([("role", pa.string()), *SAMPLE_FACTS, *EVIDENCE])
CLASSES = b"granary.classes"  # key of the plan's schema


class PlanRow(TypedDict):
    """A row of the plan, as far as a shard is made from it.

    Args:
        label: number of the class where the plan names classes.
    """

    role: str
    uri: str
    source: int
    path: str
    offset: int
    size: int
    id: str
    sha256: str
    width: int
    height: int
    label: str | int | None
    captions: list[str] | None
    metadata: str | None
    name: str
    seed_ids: list[str]
    similarities: list[float]


class LostFile(NamedTuple):
    """A file of the plan that could not be read again.

    Args:
        uri: of the file.
        error: class of the error.
        message: what the error says.
    """

    uri: str
    error: str
    message: str


@dataclasses.dataclass(frozen=True)
class PlanShards:
    """The job of `plan`.

    Args:
        as_is: numbers of the seed sets that go into the dataset themselves.
        order: of the samples: by hash, or as the pool was read.
        seed: of the run.
        rows: most samples in a shard.
        max_bytes: most image bytes in a shard; one larger image is a shard of its own.
    """

    as_is: tuple[int, ...]
    order: Literal["hash", "pool"]
    seed: int
    rows: int
    max_bytes: int


def plan(run: Run, job: PlanShards, output: Output) -> None:
    """Order the kept samples and cut them into shards: row group i is shard i; its schema states the classes."""
    kept = pa.concat_tables([PLAN.empty_table(), *_kept(run), *_as_is(run, job.as_is)])
    ids = kept["id"].to_numpy(zero_copy_only=False).astype(str)
    _, first = np.unique(ids, return_index=True)
    kept = kept.take(pa.array(np.sort(first)))
    if job.order == "hash":
        ids = kept["id"].to_numpy(zero_copy_only=False).astype(str)
        kept = kept.take(pa.array(np.lexsort((ids, priority(job.seed, ids)))))
    kept = kept.replace_schema_metadata({CLASSES: json.dumps(schema.class_names(pc.unique(kept["label"]).to_pylist()))})
    for shard in _cut(kept, job.rows, job.max_bytes):
        output.write(shard)
        output.counters["shards"] += 1
    if output.writer is None:
        output.write(kept)


def planned_classes(run: Run) -> list[str]:
    """Return the names of the classes of the kept samples; none where labels stay text."""
    with storage.open_read(run.parts("plan")[0]) as file:
        return _classes(pq.read_schema(file))


def _classes(plan: pa.Schema) -> list[str]:
    return [str(name) for name in json.loads(plan.metadata[CLASSES])]


def _kept(run: Run) -> Iterator[pa.Table]:
    """Yield the kept rows of every pool part."""
    layout = Layout.of(run, "pool")
    for part in range(len(layout.parts)):
        verdicts = read_part(run, "verdicts", part, ["status", "seed_ids", "similarities"])
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


def _as_is(run: Run, sets: tuple[int, ...]) -> Iterator[pa.Table]:
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


@dataclasses.dataclass(frozen=True)
class Reread:
    """A sample of the dataset, or why there is none.

    Args:
        sample: value of each column; {} when the file is lost.
        size: of its image, in bytes.
        problem: what was lost.
    """

    sample: Mapping[str, object]
    size: int = 0
    problem: LostFile | None = None

    @property
    def lost(self) -> bool:
        """Whether the file could not be read again."""
        return self.problem is not None

    @property
    def reason(self) -> str:
        """Class of the error; "" where there is none."""
        return self.problem.error if self.problem else ""


@dataclasses.dataclass(frozen=True)
class WriteShard:
    """The job of `write_shard`.

    Args:
        shard: row group of the plan.
        row_group: most samples in a row group.
        max_bytes: larger files are not read.
        max_unreadable: share of the shard that may be lost, see `check_lost`.
    """

    shard: int
    row_group: int
    max_bytes: int
    max_unreadable: float = undigested(1.0)


def write_shard(run: Run, job: WriteShard, output: Output) -> None:
    """Write one shard: the original bytes, read again and checked against their hash.

    What cannot be read any more, or changed since it was hashed, is left out and noted in the marker.

    Raises:
        TooManyUnreadable: see `check_lost`.
    """
    rows = read_table(run.parts("plan")[0], group=job.shard)
    classes = _classes(rows.schema)
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", schema.numbered(rows["label"], classes))
    groups = RowGroups(output, schema.arrow_schema(schema.curated_features(classes)), job.row_group)
    for row in check_lost(_reread(run, rows, job.max_bytes), job.max_unreadable, output.counters):
        if row.problem is not None:
            output.notes.append(list(row.problem))
            output.counters[DEAD] += 1
        else:
            groups.add(row.sample, row.size)
    groups.close()


def _reread(run: Run, rows: pa.Table, max_bytes: int) -> Iterator[Reread]:
    """Yield a sample of the dataset for each row of the plan, or what is lost."""
    with ExitStack() as stack:
        readers: dict[tuple[str, int], Reader] = {}
        planned = rows.to_pylist()
        for key in dict.fromkeys((row["role"], row["source"]) for row in planned):
            readers[key] = stack.enter_context(Reader(run.sources[key[0]][key[1]], max_bytes))
            readers[key].expect(row["offset"] for row in planned if (row["role"], row["source"]) == key)
        for row in planned:
            try:
                data = _read_again(row, readers[row["role"], row["source"]])
            except OSError as error:
                yield Reread({}, problem=LostFile(row["uri"], *failure(error)))
            else:
                yield Reread(_sample(run, row, data), len(data))


def _read_again(row: PlanRow, reader: Reader) -> bytes:
    data = reader.read(row["path"], row["offset"], row["size"])
    check_unchanged(data, row["sha256"])
    return data


def _sample(run: Run, row: PlanRow, data: bytes) -> dict[str, object]:
    name = run.sources[row["role"]][row["source"]].name
    return {
        "id": row["id"],
        "width": row["width"],
        "height": row["height"],
        "label": row["label"],
        "captions": row["captions"],
        "metadata": row["metadata"],
        "seed_ids": row["seed_ids"],
        "similarities": row["similarities"],
        "source": {"name": name, "uri": row["uri"]},
        "image": {"bytes": data, "path": row["name"]},
    }


@dataclasses.dataclass(frozen=True)
class WriteLedger:
    """The job of `write_ledger`.

    Args:
        role: "pool" or "seeds".
        part: of the role.
        as_is: numbers of the seed sets that go into the dataset themselves.
        lost: what the shards lost.
    """

    role: Literal["pool", "seeds"]
    part: int
    as_is: tuple[int, ...] = ()
    lost: tuple[LostFile, ...] = ()


def write_ledger(run: Run, job: WriteLedger, output: Output) -> None:
    """Write the ledger rows of one part of the pool, or of the seeds that go into the dataset."""
    columns = ["uri", "id", "sha256", "status", "source", "reason", "message", "width", "height", *QUALITY.names]
    facts = read_table(run.parts(job.role)[job.part], columns).to_pylist()
    if job.role == "pool":
        verdicts = read_part(run, "verdicts", job.part).to_pylist()
        rows = [{**fact, **verdict, "role": "pool"} for fact, verdict in zip(facts, verdicts, strict=True)]
    else:
        rows = [_seed_verdict(fact) for fact in facts if fact["source"] in job.as_is]
    lost = {file.uri: file for file in job.lost}
    for row in rows:
        if row["uri"] in lost:
            file = lost[row["uri"]]
            row |= {"status": "dead", "stage": "shards", "reason": f"{file.error}: {file.message}"}
        output.counters[f"{row['role']} {row['status']}"] += 1
    output.write(pa.Table.from_pylist(rows, CURATED_LEDGER))


def _seed_verdict(fact: Mapping[str, object]) -> dict[str, object]:
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


@dataclasses.dataclass(frozen=True)
class WriteDeadLetters:
    """The job of `write_dead_letters`.

    Args:
        roles: whose files were read.
        lost: what the shards lost.
    """

    roles: tuple[str, ...]
    lost: tuple[LostFile, ...] = ()


def write_dead_letters(run: Run, job: WriteDeadLetters, output: Output) -> None:
    """Collect what could not be read, of every role and stage."""
    read = [letter for role in job.roles for letter in (*dead_rows(run, role, "decode"), *_unread(run, role))]
    lost = [DeadLetter(file.uri, "shards", file.error, file.message) for file in sorted(job.lost)]
    dead_letters.write_dead_letters([*read, *_unreadable(run), *lost], output)


def _unread(run: Run, role: str) -> Iterator[DeadLetter]:
    """Yield what speaks of the images of a role and could not be read: captions, labels, metadata."""
    for url in run.parts(role):
        table = read_table(url, ["uri", "unread"])
        for row in table.filter(pc.greater(pc.list_value_length(table["unread"]), 0)).to_pylist():
            for unread in row["unread"]:
                yield DeadLetter(row["uri"], "decode", unread["error"], unread["message"], unread["part"])


def _unreadable(run: Run) -> Iterator[DeadLetter]:
    """Yield the survivors that could not be read again for the retrieval encoder."""
    if run.parts("unreadable"):
        rows = run.read("unreadable", 0)
        uris = Layout.of(run, "pool").take(rows["index"].to_numpy(), ["uri"])["uri"].to_pylist()
        for uri, row in zip(uris, rows.to_pylist(), strict=True):
            yield DeadLetter(uri, row["stage"], row["reason"], row["message"])
