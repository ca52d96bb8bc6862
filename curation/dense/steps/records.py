"""List the annotated images of a source and cut them into work units: row group i of one file is unit i."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TypedDict

import pyarrow as pa

from granary.curation.dense.readers import READERS
from granary.curation.dense.readers.record import Record
from granary.curation.dense.recipe import Format
from granary.curation.errors import UserError
from granary.curation.runs.run import Output, Run, digest, read_table
from granary.curation.sources import Reader, Source, files

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("name", "path", "text", "stamp", "split", "error", "message")]
    + [("size", pa.int64())]
)
GROUP_CHARACTERS = 64 << 20
SPLITS_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class ListRecords:
    """Which annotations are listed, and how they are cut into units.

    Args:
        format: of the annotations.
        unit_rows: most annotations in a unit.
        max_bytes: an annotation may have.
        captions: of coco, the path of the caption file; "" for none.
        splits: path of splits.json; "" for none.
        state: digest of the files that are listed.
    """

    format: Format
    unit_rows: int
    max_bytes: int
    captions: str
    splits: str
    state: str


def list_records(run: Run, job: ListRecords, output: Output) -> None:
    """Write one row per annotation; the notes are digest and length of the row groups, by which units know their work.

    Annotations that splits.json names and the folder has not become dead records.
    """
    source = run.sources["annotations"][0]
    options = {"captions": job.captions} if job.format == "coco" else {}
    records = READERS[job.format].records(source, job.max_bytes, **options)
    splits = load_splits(job.splits) if job.splits else {}
    for group in _groups(_with_missing(records, splits), job.unit_rows):
        rows = [_row(record, splits) for record in group]
        output.write(pa.Table.from_pylist(rows, SCHEMA))
        output.notes.append([digest(rows), len(rows)])
    output.begin(SCHEMA)


class RecordRow(TypedDict):
    """A row of the listing: a record, the split it belongs to, and why it cannot be read where it cannot."""

    name: str
    path: str
    text: str
    stamp: str
    split: str
    error: str | None
    message: str | None
    size: int


def _row(record: Record, splits: Mapping[str, str]) -> RecordRow:
    error, message = record.error or (None, None)
    split = splits.get(record.name.rsplit("/", 1)[-1], "")
    return {
        "name": record.name,
        "path": record.path,
        "text": record.text,
        "stamp": record.stamp,
        "split": split,
        "error": error,
        "message": message,
        "size": record.size,
    }


def _with_missing(records: Iterable[Record], splits: Mapping[str, str]) -> Iterator[Record]:
    missing = dict(splits)
    for record in records:
        missing.pop(record.name.rsplit("/", 1)[-1], None)
        yield record
    for name in sorted(missing):
        yield Record(name, error=("MissingFile", "splits.json names it and there is no such file"))


def _groups(records: Iterable[Record], rows: int) -> Iterator[list[Record]]:
    group: list[Record] = []
    characters = 0
    for record in records:
        group.append(record)
        characters += len(record.text)
        if len(group) == rows or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def load_splits(path: str) -> dict[str, str]:
    """Return the split of each file name of splits.json: {"train": [names], "valid": ..., "test": ...}.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(files.read_file(path, SPLITS_BYTES))
        return {str(name).rsplit("/", 1)[-1]: str(split) for split, names in found.items() for name in list(names)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"splits: {path} cannot be read ({error}); give an object of split names with lists of file names"
        ) from error


def read_records(run: Run, unit: int) -> list[RecordRow]:
    """Return the records of a unit."""
    return read_table(run.parts("records")[0], group=unit).to_pylist()


class RecordReader:
    """Reads the JSON of records; use as a context manager.

    Args:
        source: of the annotations, resolved.
        max_bytes: an annotation may have.
    """

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.reader = Reader(source, max_bytes)

    def read(self, record: RecordRow) -> bytes | str:
        """Return the text of a record; raises OSError."""
        return self.reader.read(record["path"], 0, record["size"]) if record["path"] else record["text"]

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.reader.__exit__(None, None, None)
