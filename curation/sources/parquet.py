"""Parquet files with an image column: an HF Image struct (bytes, path) or plain binary."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.download.client import Downloads
from granary.curation.errors import UserError
from granary.curation.sources import columns, contents, files
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, failure, too_many_bytes

ENDINGS = contents.TABLE_ENDINGS
BATCH_ROWS = 16  # rows of image bytes held at once
BUFFER = 1 << 20
FAILURES = (pa.ArrowException, OSError, ValueError, KeyError)


class Columns(NamedTuple):
    """Names of the columns that are read, and the class names of the label."""

    image: str
    label: str | None
    captions: str | None
    classes: Sequence[str] | None

    @property
    def names(self) -> list[str]:
        """Return the names of the columns that are there, once each."""
        return list(dict.fromkeys(name for name in (self.image, self.label, self.captions) if name))


def list_pieces(source: Source, left_out: LeftOut) -> Iterator[Piece]:
    """Yield one piece per row group; one of unknown length for a file whose footer cannot be read."""
    for file in contents.data_files(source, ENDINGS, left_out):
        groups = footer(source, file.path)
        if groups is None:
            yield Piece(file.path, 0, 0, file.size, 0, file.stamp)
        elif not groups and source.path.endswith("/"):
            left_out[contents.what(file.path), "a table without a column of images, or without rows"] += 1
        for start, stop, size in groups or ():
            yield Piece(file.path, start, stop, size, stop - start, file.stamp)


def footer(source: Source, path: str) -> list[tuple[int, int, int]] | None:
    """Return the row groups of a file, None where they cannot be read; none where a table of a folder has no images."""
    try:
        with files.open_file(address(source, path)) as opened:
            file = pq.ParquetFile(opened)
            if source.path.endswith("/"):
                choose_columns(source, file.schema_arrow)
            return row_groups(file)
    except UserError:
        return []
    except FAILURES:
        return None


def address(source: Source, path: str) -> str:
    """Return where a file of the source is."""
    return files.join(files.root(source.path), path)


def row_groups(file: pq.ParquetFile) -> list[tuple[int, int, int]]:
    """Return (first row, row after the last, bytes) of the row groups."""
    groups, start = [], 0
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        groups.append((start, start + group.num_rows, group.total_byte_size))
        start += group.num_rows
    return groups


def open_parquet(file: BinaryIO) -> pq.ParquetFile:
    """Open for reading in order with little memory: pages are streamed, not whole row groups."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER)


def choose_columns(source: Source, schema: pa.Schema) -> Columns:
    """Return the columns of a file. Raises UserError where there is no image column."""
    features = huggingface_features(schema)
    typed = [name for name, feature in features.items() if feature.get("_type") == "Image" and name in schema.names]
    label = columns.find(schema.names, source.label_column)
    feature = features.get(label or "", {})
    classes = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    image = columns.image_name(source, schema.names, typed)
    return Columns(image, label, columns.caption_name(source, schema.names), classes)


def huggingface_features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features that `datasets` wrote into the schema; empty where it did not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def rows(file: pq.ParquetFile, names: list[str], start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """Yield (row, batch, index in the batch) of rows [start, stop), touching no row group before its turn."""
    for group, (row, after, _) in enumerate(row_groups(file)):
        if after <= start or row >= stop:
            continue
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
            for index in range(max(0, start - row), min(batch.num_rows, stop - row)):
                yield row + index, batch, index
            row += batch.num_rows
            if row >= stop:
                return


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the rows of a piece with their bytes; every row that cannot be read is dead for itself."""
    row = piece.start
    try:
        with files.open_file(address(source, piece.path)) as opened:
            file = open_parquet(opened)
            chosen = choose_columns(source, file.schema_arrow)
            stop = piece.stop or file.metadata.num_rows
            for number, batch, index in rows(file, chosen.names, piece.start, stop):
                yield candidate(source, piece.path, number, chosen, batch, index, max_bytes)
                row = number + 1
    except (*FAILURES, UserError) as error:
        uris = [f"{source.name}/{piece.path}#{lost}" for lost in range(row, piece.stop)]
        for uri in uris or [f"{source.name}/{piece.path}#rest"]:
            yield Candidate(uri, piece.path, error=failure(error))


def candidate(
    source: Source, path: str, row: int, chosen: Columns, batch: pa.RecordBatch, index: int, max_bytes: int
) -> Candidate:
    """Return the candidate of one row."""
    uri = f"{source.name}/{path}#{row}"
    try:
        cells = {name: batch.column(name)[index].as_py() for name in chosen.names}
        return from_cells(source, uri, path, row, chosen, cells, max_bytes)
    except FAILURES as error:
        return Candidate(uri, path, row, error=failure(error))


def from_cells(
    source: Source, uri: str, path: str, row: int, chosen: Columns, cells: Mapping[str, object], max_bytes: int
) -> Candidate:
    """Return the candidate of a row of Python values; bytes of another file are left to the reader."""
    data, reference = columns.image_of(cells[chosen.image])
    if data is None and not reference:
        return Candidate(uri, path, row, error=("NoImage", "the row has neither bytes nor a path"))
    if data is not None and len(data) > max_bytes:
        return Candidate(uri, path, row, error=too_many_bytes(len(data), max_bytes))
    label = columns.label_of(cells[chosen.label], chosen.classes) if chosen.label else None
    captions = columns.captions_of(cells[chosen.captions]) if chosen.captions else ()
    return Candidate(uri, path, row, len(data or b""), label, captions, data=data)


def cell_bytes(
    value: object, top: str, folder: str, max_bytes: int, download: Callable[[str], bytes] | None = None
) -> bytes:
    """Return the bytes of an image cell, those of the file it names where it has none itself."""
    data, reference = columns.image_of(value)
    if data is None and not reference:
        raise OSError("the row has neither bytes nor a path")
    if data is None:
        return files.read_reference(top, folder, reference or "", max_bytes, download)
    if len(data) > max_bytes:
        raise files.TooManyBytes(too_many_bytes(len(data), max_bytes)[1])
    return data


def random_access(source: Source) -> bool:
    """Say that rows are read in order: a row group is unpacked from its start."""
    return False


class Reader:
    """Reads rows; going on in the same row group costs nothing, going back starts it again."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.path = ""
        self.downloads = Downloads(source.download, max_bytes, source.private_addresses)
        self.opened: BinaryIO | None = None
        self.last: tuple[int, pa.RecordBatch, int] | None = None

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the bytes of row `offset`."""
        if self.opened is None or path != self.path:
            self.close()
            self.opened, self.path = files.open_file(address(self.source, path)), path
            self.file = open_parquet(self.opened)
            self.image = choose_columns(self.source, self.file.schema_arrow).image
            self.stops = [stop for _, stop, _ in row_groups(self.file)]
        value = self.value(offset)
        here = address(self.source, path)
        folder = here[: here.rfind("/") + 1]
        return cell_bytes(value, files.root(self.source.path), folder, self.max_bytes, self.downloads.read)

    def value(self, row: int) -> object:
        """Return the image cell of a row."""
        if not self.stops or not 0 <= row < self.stops[-1]:
            raise OSError(f"no row {row}")
        last, self.last = self.last, None  # forgotten if the file turns out to be damaged here
        if last is None or not self.is_ahead(last[0], row):
            self.rows = rows(self.file, [self.image], row, self.stops[-1])
            last = next(self.rows, None)
        while last is not None and last[0] < row:
            last = next(self.rows, None)
        if last is None:
            raise OSError(f"no row {row}")
        self.last = last
        return last[1].column(self.image)[last[2]].as_py()

    def is_ahead(self, current: int, row: int) -> bool:
        """Say whether a row is reached by reading on: in this row group or the next."""
        between = sum(current < stop <= row for stop in self.stops)
        return current <= row and between <= 1

    def close(self) -> None:
        """Close the file that is open, and the connections."""
        self.downloads.close()
        if self.opened is not None:
            self.opened.close()
        self.opened = self.last = None
