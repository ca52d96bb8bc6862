"""Parquet files with an image column: an HF Image struct (bytes, path) or plain binary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.download.client import Downloads
from granary.curation.errors import UserError
from granary.curation.sources import columns, contents, files
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, escape, failure, too_many_bytes
from granary.curation.store.schema import class_names_of, huggingface_features

ENDINGS = contents.TABLE_ENDINGS
BATCH_ROWS = 16  # rows of image bytes held at once
BUFFER = 1 << 20
# Of a dataset that granary wrote: what tells it, and what is written anew.
GRANARY_MARKS = frozenset(["id", "image", "width", "height", "source", "captions"])
GRANARY = frozenset(["id", "width", "height", "source", "seed_ids", "similarities"])
FAILURES = (pa.ArrowException, OSError, ValueError, KeyError)


class Columns(NamedTuple):
    """Names of the columns that are read, and the class names of the label.

    Args:
        image: column of the images.
        label: column of the label.
        others: columns that hold captions, label and metadata.
        classes: names of the labels, by number.
        left_out: (column, why) of those that are not read.
    """

    image: str
    label: str | None
    others: Sequence[str]
    classes: Sequence[str] | None
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> list[str]:
        """Return the names of the columns that are read, once each."""
        return list(dict.fromkeys((self.image, *self.others)))


def columns_of(source: Source, schema: pa.Schema, image: str, classes: Sequence[str] | None) -> Columns:
    """Return the columns that are read: all that JSON can hold, but for those that granary writes anew."""
    names = [name for name in schema.names if name != image]
    anew = GRANARY if GRANARY_MARKS.issubset(schema.names) else frozenset()
    left_out = {name: "granary writes its own" for name in names if name in anew}
    left_out |= {name: "holds bytes" for name in names if name not in anew and holds_bytes(schema.field(name).type)}
    label, captions = columns.find(names, source.label_column), columns.caption_name(source, names)
    for name in filter(None, (label, captions)):
        left_out.pop(name, None)
    others = [name for name in names if name not in left_out]
    return Columns(image, label, others, classes, tuple(left_out.items()))


def holds_bytes(kind: pa.DataType) -> bool:
    """Say whether a column holds bytes, or lists or records of them: pictures, sound, arrays."""
    if isinstance(kind, pa.BaseExtensionType):
        return holds_bytes(kind.storage_type)
    children = [kind.field(number).type for number in range(kind.num_fields)]
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return binary or any(map(holds_bytes, children))


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
    classes = class_names_of(features.get(label or "", {})) or None
    return columns_of(source, schema, columns.image_name(source, schema.names, typed), classes)


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
    record = {**columns.partitions(path), **{name: cells[name] for name in chosen.others}}
    label, captions, rest = columns.described(source, record, chosen.classes)
    metadata, name = columns.metadata_of(rest), escape(contents.base_name(reference or ""))
    size, left_out = len(data or b""), chosen.left_out
    return Candidate(uri, path, row, size, label, captions, metadata, data, name=name, left_out=left_out)


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
