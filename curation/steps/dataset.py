"""The outputs: the shards, the ledger, the dead letters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Literal, NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.runs import dead_letters
from granary.curation.runs.dead_letters import DeadLetter, dead_rows
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import DEAD, Output, Run, undigested
from granary.curation.runs.spans import read_part
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Layout
from granary.curation.sources import Reader, failure
from granary.curation.steps.plan import planned_classes, planned_rows
from granary.curation.steps.unreadable import check_lost, check_unchanged
from granary.curation.store import schema
from granary.curation.store.schema import CURATED_LEDGER, QUALITY


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
        start: position of its first sample in the order of the plan.
        stop: position after its last.
        row_group: most samples in a row group.
        max_bytes: larger files are not read.
        max_unreadable: share of the shard that may be lost, see `check_lost`.
    """

    start: int
    stop: int
    row_group: int
    max_bytes: int
    max_unreadable: float = undigested(1.0)


def write_shard(run: Run, job: WriteShard, output: Output) -> None:
    """Write one shard: the original bytes, read again and checked against their hash.

    What cannot be read any more, or changed since it was hashed, is left out and noted in the marker.

    Raises:
        TooManyUnreadable: see `check_lost`.
    """
    rows, classes = planned_rows(run, job.start, job.stop), planned_classes(run)
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
