"""The table of an image folder: metadata.csv, .jsonl or .parquet, as the Hub's `imagefolder` reads them.

A row names a picture by `file_name`, relative to the folder of the table; the table speaks of that folder and of all
below it that have none of their own.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.sources import columns, files, sidecars
from granary.curation.sources.model import escape, plain

FILE_NAME = "file_name"
MAX_TABLE = 4 << 30  # bytes


class NoFileNames(UserError):
    """A table that is called metadata, without the column that names pictures."""


def row_of(path: str, stamp: str, picture: str) -> Mapping[str, object]:
    """Return what a table says of a picture; nothing where it has no row for it.

    Args:
        path: of the table.
        stamp: of its state.
        picture: path of the picture, relative to the folder of the table.
    """
    row = rows_by_name(path, stamp).get(picture)
    return json.loads(row) if row is not None else {}


@functools.lru_cache(maxsize=4)
def rows_by_name(path: str, stamp: str) -> dict[str, str]:
    """Return the rows of a table as JSON, by the name of their picture.

    Raises:
        NoFileNames: it has no column of names.
        UserError: it cannot be read.
    """
    try:
        return {name: text for row in rows(path) for name, text in named(row)}
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {why}; correct it, or move it away.") from error
    except KeyError:
        raise NoFileNames(f"{path} has no column {FILE_NAME}, so it says nothing of pictures.") from None


def named(row: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield the name of a row and its other cells as JSON; nothing for a row without a name. Raises KeyError."""
    name = row[FILE_NAME]
    if isinstance(name, str) and name.strip():
        cells = {key: columns.jsonable(value) for key, value in row.items() if key != FILE_NAME and value != ""}
        yield escape(name.strip().removeprefix("./")), plain(json.dumps(cells, ensure_ascii=False))


def rows(path: str) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a table."""
    ending = path.rpartition(".")[2].lower()
    if ending == "parquet":
        with files.open_file(path) as file:
            for batch in pq.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
        return
    data = files.read_file(path, MAX_TABLE)
    yield from json_rows(data) if ending == "jsonl" else csv_rows(columns.text_of(data))


def csv_rows(text: str) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a CSV file with a header; a file without rows must have its columns too."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), restkey="more")
    if FILE_NAME not in (reader.fieldnames or ()):
        raise KeyError(FILE_NAME)
    yield from reader


def json_rows(data: bytes) -> Iterator[Mapping[str, object]]:
    """Yield the rows of lines of JSON."""
    for line in columns.text_of(data).removeprefix("\ufeff").splitlines():
        if line.strip():
            record, _ = sidecars.read_json(line.encode("utf-8", "surrogatepass"))
            if not isinstance(record, dict):
                raise ValueError(f"a line is no object: {line[:60]}")
            yield record
