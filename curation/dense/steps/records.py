"""List the annotated images of a source and cut them into work units: row group i of one file is unit i."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypedDict, cast

import pyarrow as pa

from granary.curation.dense.readers import IN_PAIRS, READERS
from granary.curation.dense.readers.record import Record
from granary.curation.dense.recipe import Format
from granary.curation.dense.tree import Annotation, InvalidAnnotation
from granary.curation.errors import UserError
from granary.curation.runs.run import Output, Run, digest
from granary.curation.runs.splits import NAME, TRAIN
from granary.curation.runs.tables import read_table
from granary.curation.sources import Reader, Source, files
from granary.curation.store.trees import mapping

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("name", "path", "text", "stamp", "split", "error", "message")]
    + [("size", pa.int64())]
)
GROUP_CHARACTERS = 64 << 20
SPLITS_BYTES = 256 << 20
OTHER = "other"  # split of the shards of what splits.json names nowhere


class RecordRow(TypedDict):
    """A record as this stage writes it, with its split.

    Args:
        error: short class name of why it cannot be read; None where it can.
        message: what that says; None where it can be read.
    """

    name: str
    path: str
    text: str
    stamp: str
    split: str
    error: str | None
    message: str | None
    size: int


class Group(NamedTuple):
    """What the marker of this stage notes of a row group, by which a later unit knows its work.

    Args:
        digest: of its records.
        rows: their number.
        split: of all of them: as splits.json names it, OTHER where it names the file nowhere, train without one.
    """

    digest: str
    rows: int
    split: str


@dataclasses.dataclass(frozen=True)
class ListRecords:
    """The job of `list_records`.

    Args:
        format: of the annotations.
        unit_rows: most records in a row group.
        max_bytes: longer lines are not read.
        second: path of the file that goes with COCO's instances or VQAv2's questions; "" for none.
        splits: path of splits.json; "" for none.
        state: digest of the names, sizes and times of the files.
    """

    format: Format
    unit_rows: int
    max_bytes: int
    second: str
    splits: str
    state: str


def list_records(run: Run, job: ListRecords, output: Output) -> None:
    """Write one row per annotation, and note each row group, see `Group`.

    Those that splits.json names come first, in its order, as the batches of DCI's benchmark do; those of them that are
    not in the folder become dead records.
    """
    splits = load_splits(job.splits) if job.splits else {}
    records = _records(run.sources["annotations"][0], job)
    if splits:
        records = _in_order(records, splits)
    rest = OTHER if splits else TRAIN
    for rows in _groups((_row(record, splits) for record in records), job.unit_rows):
        output.write(pa.Table.from_pylist(rows, SCHEMA))
        output.notes.append(Group(digest(rows), len(rows), rows[0]["split"] or rest))
    output.begin(SCHEMA)


def _records(source: Source, job: ListRecords) -> Iterator[Record]:
    if job.format in IN_PAIRS:
        return IN_PAIRS[job.format](source, job.max_bytes, job.second)
    return READERS[job.format].records(source, job.max_bytes)


def _row(record: Record, splits: Mapping[str, str]) -> RecordRow:
    error, message = record.error or (None, None)
    return {
        "name": record.name,
        "path": record.path,
        "text": record.text,
        "stamp": record.stamp,
        "size": record.size,
        "split": splits.get(record.name.rsplit("/", 1)[-1], ""),
        "error": error,
        "message": message,
    }


def _in_order(records: Iterable[Record], splits: Mapping[str, str]) -> Iterator[Record]:
    """Yield the records that splits.json names in its order, then the others as they come, then those not there."""
    named = defaultdict[str, list[Record]](list, {name: [] for name in splits})
    for record in records:
        named[record.name.rsplit("/", 1)[-1]].append(record)
    for group in named.values():
        yield from group
    for name in sorted(name for name, group in named.items() if not group):
        yield Record(name, error=("MissingFile", "splits.json names it and there is no such file"))


def _groups(records: Iterable[RecordRow], rows: int) -> Iterator[list[RecordRow]]:
    """Yield groups of one split each, as they are full; within a split records keep their order."""
    groups: dict[str, list[RecordRow]] = {}
    characters: Counter[str] = Counter()
    for record in records:
        split = record["split"]
        groups.setdefault(split, []).append(record)
        characters[split] += len(record["text"])
        if len(groups[split]) == rows or characters[split] >= GROUP_CHARACTERS:
            yield groups.pop(split)
            del characters[split]
    yield from groups.values()


def load_splits(path: str) -> dict[str, str]:
    """Return the split of each file name of splits.json, in its order: {"train": [names], "valid": ..., "test": ...}.

    Raises:
        UserError: it cannot be read, is something else, or names a split that no file can be named after.
    """
    try:
        splits = cast(Mapping[str, Iterable[object]], mapping("splits.json", files.read_file(path, SPLITS_BYTES)))
        named = {str(name).rsplit("/", 1)[-1]: str(split) for split, names in splits.items() for name in list(names)}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"splits: {path} cannot be read ({error}); give an object of split names with lists of file names"
        ) from error
    if wrong := next((split for split in named.values() if not NAME.fullmatch(split)), None):
        raise UserError(f"splits: {path} names a split {wrong!r}; give letters, digits and _, such as train")
    return named


def read_records(run: Run, unit: int) -> list[RecordRow]:
    """Return the records of a unit."""
    rows: list[RecordRow] = read_table(run.parts("records")[0], group=unit).to_pylist()
    return rows


class AnnotationReader:
    """Reads the annotations of records; use as a context manager.

    Args:
        source: of the annotations, resolved.
        format: of them.
        max_bytes: most bytes of one of them.
    """

    def __init__(self, source: Source, format: Format, max_bytes: int) -> None:
        self.reader, self.parse = Reader(source, max_bytes), READERS[format].parse

    def read(self, record: RecordRow) -> Annotation:
        """Return the annotation of a record.

        Raises:
            InvalidAnnotation: nothing of it can be used.
            OSError: its file cannot be read.
        """
        if record["error"]:
            raise InvalidAnnotation(record["error"], record["message"] or "")
        text = self.reader.read(record["path"], 0, record["size"]) if record["path"] else record["text"]
        annotation = self.parse(text, record["name"])
        return dataclasses.replace(annotation, split=record["split"]) if record["split"] else annotation

    def __enter__(self) -> AnnotationReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.reader.__exit__(None, None, None)
