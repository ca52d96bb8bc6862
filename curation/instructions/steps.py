"""What the work units of a pack run of instructions do, without Beam: rows, names, shards, ledger, dead letters."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.dense.steps.notes import note, read_notes
from granary.curation.dense.tree import Problem
from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.instructions.asking import instructions_of
from granary.curation.instructions.recipe import Task
from granary.curation.instructions.schema import PictureRow, picture_features
from granary.curation.instructions.things import PARTS, SLOTS, things_of, words_of
from granary.curation.runs import dead_letters
from granary.curation.runs.chosen import image_shards
from granary.curation.runs.dead_letters import DeadLetter
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import NoJob, Output, Run, digest
from granary.curation.runs.splits import NAME, TRAIN
from granary.curation.runs.tables import read_groups, read_table
from granary.curation.sources import listing
from granary.curation.sources.contents import split_of
from granary.curation.store import schema, storage

PARQUET = ".parquet"
READ = ("image", "label", "captions", SLOTS, "mask", PARTS, "questions", "polls")
LISTED = pa.schema([("data", pa.int32()), ("path", pa.string()), ("row", pa.int64()), ("split", pa.string())])
NAMES = pa.schema([("name", pa.string()), ("pictures", pa.int64())])


class Group(NamedTuple):
    """What the marker of the list notes of a row group: digest of rows and file, number of rows, their split."""

    digest: str
    rows: int
    split: str


@dataclasses.dataclass(frozen=True)
class ListRows:
    """The job of `list_rows` and of `count_names`.

    Args:
        state: digest of what the files of the data are now.
    """

    state: str


def files_of(run: Run) -> list[tuple[int, listing.File]]:
    """Return the Parquet files of all data in order, each with the number of its data."""
    folders = [source.path for source in run.sources["data"]]
    return [
        (n, file) for n, folder in enumerate(folders) for file in listing.walk(folder) if file.path.endswith(PARQUET)
    ]


def state_of(run: Run) -> str:
    """Return a digest that changes when a file of the data does."""
    return digest([(number, *file) for number, file in files_of(run)])


def _url(run: Run, data: int, path: str) -> str:
    return storage.join(run.sources["data"][data].path, path)


def list_rows(run: Run, job: ListRows, output: Output) -> None:
    """Write which rows of the data each shard is made of: the rows of one file and one split are one row group."""
    for number, file in files_of(run):
        url = _url(run, number, file.path)
        splits = _splits(url, file.path)
        for split in dict.fromkeys(splits):
            own = [row for row, other in enumerate(splits) if other == split]
            rows = [{"data": number, "path": file.path, "row": row, "split": split} for row in own]
            output.write(pa.Table.from_pylist(rows, LISTED))
            output.notes.append(Group(digest(rows, file), len(rows), split))
    output.begin(LISTED)


def _splits(url: str, path: str) -> list[str]:
    """Return the split of each row of a file: as its column says, else the name of the file, else train."""
    with storage.open_read(url) as opened:
        parquet = pq.ParquetFile(opened)
        there, rows = "split" in parquet.schema_arrow.names, parquet.metadata.num_rows
    stated = read_table(url, ["split"])["split"].to_pylist() if there else [split_of(path)] * rows
    return [split if split and NAME.fullmatch(split) else TRAIN for split in stated]


def count_names(run: Run, job: ListRows, output: Output) -> None:
    """Write the names of things, and how many pictures show each."""
    counts = Counter[str]()
    for number, file in files_of(run):
        url = _url(run, number, file.path)
        for column, field in ((SLOTS, "name"), (PARTS, "label")):
            if paths := _paths(url, column, field):
                for table in read_groups(url, paths):
                    for cell in table[column].to_pylist():
                        counts.update({words_of(thing.get(field)) for thing in cell or ()} - {""})
    output.write(pa.Table.from_pylist([{"name": n, "pictures": c} for n, c in sorted(counts.items())], NAMES))


def _paths(url: str, column: str, field: str) -> list[str]:
    """Return the paths of a field of the structs in a column, which alone is read."""
    with storage.open_read(url) as opened:
        stored = pq.ParquetFile(opened).metadata.schema
    paths = [stored.column(place).path for place in range(len(stored))]
    return [path for path in paths if path.startswith(f"{column}.") and path.endswith(f".{field}")]


@dataclasses.dataclass(frozen=True)
class PackRows:
    """The job of `write_shard`.

    Args:
        unit: row group of the list.
        listed: digest of its rows.
        tasks: what is asked.
        absent: names that a picture does not show.
        textures: columns of textures.
        decode: limits on pictures.
        row_group: most rows in a row group.
        seed: of the run.
    """

    unit: int
    listed: str
    tasks: tuple[Task, ...]
    absent: int
    textures: tuple[str, ...]
    decode: DecodeLimits
    row_group: int
    seed: int


def write_shard(run: Run, job: PackRows, output: Output) -> None:
    """Make the instructions of the pictures of one unit; what is lost is noted with its reason."""
    names = run.read("names", 0)["name"].to_pylist()
    shard = RowGroups(output, schema.arrow_schema(picture_features()), job.row_group)
    for uri, split, row in _rows(run, job):
        output.counters["files"] += 1
        made = _packed(uri, split, row, names, job, output)
        if made is not None:
            shard.add(made, len(made["image"]["bytes"]))
    shard.close()


def _rows(run: Run, job: PackRows) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield uri, split and columns of the rows of a unit, a row group held at a time."""
    listed = read_table(run.parts("rows")[0], group=job.unit).to_pylist()
    data, path = listed[0]["data"], listed[0]["path"]
    url, wanted = _url(run, data, path), {row["row"] for row in listed}
    with storage.open_read(url) as opened:
        there = pq.ParquetFile(opened).schema_arrow.names
    columns = [name for name in (*READ, *job.textures) if name in there]
    start = 0
    for table in read_groups(url, columns):
        table = schema.named(table)
        for place in range(len(table)):
            if start + place in wanted:
                (row,) = table.slice(place, 1).to_pylist()
                yield uri_of(data, path, start + place), listed[0]["split"], row
        start += len(table)


def uri_of(data: int, path: str, row: int) -> str:
    """Return what a row is called: number of its data, file and number there."""
    return f"data-{data}/{path}#{row}"


def _packed(
    uri: str, split: str, row: dict[str, Any], names: Sequence[str], job: PackRows, output: Output
) -> PictureRow | None:
    """Return the row of a picture, counted, or None where there is none, and note what was lost of it."""
    cell = row.get("image")
    data = (cell.get("bytes") if isinstance(cell, dict) else cell) or b""
    try:
        picture = decode(data, job.decode)
    except DecodeError as error:
        note(output, uri, "dead", Problem("", error.kind, str(error)))
        return None
    size = picture.width, picture.height
    things, problems = things_of(row, size, job.textures)
    for problem in problems:
        note(output, uri, "part", problem)
    identity = hashlib.sha256(data).hexdigest()[:32]
    made = instructions_of(row, things, size, names, job.tasks, job.absent, f"{job.seed}/{identity}")
    if not made:
        note(output, uri, "dropped", Problem("", "NothingToAsk", "nothing is known of the picture"))
        return None
    output.counters.update(instruction["task"] for instruction in made)
    without = sum(i["form"] != "text" and not i["targets"] for i in made)
    output.counters.update({"kept": 1, "things": len(things), "instructions": len(made), "without a target": without})
    label = row.get("label")
    return PictureRow(
        id=identity,
        image={"bytes": data, "path": (cell.get("path") if isinstance(cell, dict) else None) or f"{identity}.png"},
        width=size[0],
        height=size[1],
        label=None if label is None else str(label),
        captions=[text for text in row.get("captions") or () if text],
        source={"name": uri.partition("/")[0], "uri": uri},
        split=split,
        things=things,
        instructions=made,
    )


@dataclasses.dataclass(frozen=True)
class WriteLedger:
    """The job of `write_ledger`.

    Args:
        unit: number of the shard.
        shard: its digest.
    """

    unit: int
    shard: str


def write_ledger(run: Run, job: WriteLedger, output: Output) -> None:
    """Write one row per row of the data of a unit: kept, dropped or dead, and why."""
    lost = {one.name: one for one in read_notes(run.parts("shards")[job.unit]) if one.status != "part"}
    kept = {}
    for table in read_groups(image_shards(run)[job.unit], ["id", "source", "image"]):
        for place in range(len(table)):
            (row,) = table.slice(place, 1).to_pylist()
            kept[row["source"]["uri"]] = {
                "id": row["id"],
                "sha256": hashlib.sha256(row["image"]["bytes"]).hexdigest(),
            }
    rows = []
    for listed in read_table(run.parts("rows")[0], group=job.unit).to_pylist():
        uri = uri_of(listed["data"], listed["path"], listed["row"])
        one = lost.get(uri)
        status, reason = (one.status, f"{one.error}: {one.message}") if one else ("kept", "packed")
        decided = {"uri": uri, "role": "pool", "status": status, "stage": "shards", "reason": reason}
        rows.append({**decided, **kept.get(uri, {}), "seed_ids": [], "similarities": []})
        output.counters[status] += 1
    output.write(pa.Table.from_pylist(rows, schema.LEDGER))


def write_dead_letters(run: Run, job: NoJob, output: Output) -> None:
    """Collect what was lost: pictures, and things of those that were packed."""
    for part in run.parts("shards"):
        lost = (one for one in read_notes(part) if one.status != "dropped")
        letters = (DeadLetter(one.name, "read", one.error, one.message, one.part) for one in lost)
        dead_letters.write_dead_letters(letters, output)
    output.begin(schema.DEAD_LETTER)
