"""Lists of addresses: text (one a line), CSV, TSV or Parquet. An address is a path or any fsspec URL.

Relative paths start from the folder of the list. A list on a remote service may name remote addresses and
files below its own folder only. The list is held in memory, about 100 bytes a row.
"""

from __future__ import annotations

import csv
import functools
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.sources import columns, files
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, escape, field_name, unescape
from granary.curation.store import storage

ENDINGS = (".txt", ".csv", ".tsv")
PIECE_ROWS = 256


class UrlList(NamedTuple):
    """table: address, label, captions, one row each. repeats: row -> how often its address came before."""

    table: pa.Table
    repeats: dict[int, int]


def list_pieces(source: Source, left_out: LeftOut) -> Iterator[Piece]:
    """Yield ranges of rows of the list."""
    name = source.path[len(files.root(source.path)) :]
    stamp = files.info(source.path)["stamp"]
    total = load(source, stamp).table.num_rows
    for start in range(0, total, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, total)
        yield Piece(escape(name), start, stop, 0, stop - start, stamp)


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the addresses of a range, nothing fetched yet."""
    listed = load(source, piece.stamp)
    for row, cells in enumerate(listed.table.slice(piece.start, piece.stop - piece.start).to_pylist(), piece.start):
        address = cells["address"]
        if not address:
            error = ("NoUrl", "the row has no address")
            yield Candidate(f"{source.name}/{piece.path}#{row}", piece.path, row, error=error)
            continue
        repeat = f"#{listed.repeats[row] + 1}" if row in listed.repeats else ""
        uri = f"{source.name}/{address}{repeat}"
        yield Candidate(uri, address, label=cells["label"], captions=tuple(cells["captions"]))


def load(source: Source, stamp: str) -> UrlList:
    """Return the parsed list, kept for the process as long as its stamp is the same."""
    return parse(source.path, stamp, source.name, source.url_column, source.label_column, source.caption_column)


@functools.lru_cache(maxsize=4)
def parse(path: str, stamp: str, name: str, url: str, label: str, caption: str | None) -> UrlList:
    """Read a list. Raises UserError where it has no such column or cannot be read."""
    source = Source(name=name, path=path, url_column=url, label_column=label, caption_column=caption)
    try:
        batches = list(record_batches(source))
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:
        raise UserError(f"{name or 'source'}.path is {path!r}, a list that cannot be read: {error}") from error
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    return UrlList(table, repeats(table.column("address")))


SCHEMA = pa.schema({"address": pa.string(), "label": pa.string(), "captions": pa.list_(pa.string())})


def record_batches(source: Source) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the list in batches of SCHEMA."""
    with files.open_file(source.path) as file:
        if source.path.lower().endswith(".parquet"):
            yield from parquet_batches(source, pq.ParquetFile(file))
            return
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows: Iterable[tuple[object, object, object]]
        if source.path.lower().endswith((".csv", ".tsv")):
            rows = csv_rows(
                source, csv.DictReader(text, delimiter="\t" if source.path.lower().endswith(".tsv") else ",")
            )
        else:
            lines = (line.strip() for line in text)
            rows = ((line, None, None) for line in lines if line and not line.startswith("#"))
        yield batch(list(rows))


def csv_rows(source: Source, reader: csv.DictReader[str]) -> Iterator[tuple[object, object, object]]:
    """Yield (address, label, caption) of a CSV file with a header."""
    url, label, caption = pick(source, list(reader.fieldnames or []))
    for row in reader:
        yield row[url], row.get(label or ""), row.get(caption or "")


def parquet_batches(source: Source, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet list."""
    url, label, caption = pick(source, file.schema_arrow.names)
    for part in file.iter_batches(columns=[name for name in (url, label, caption) if name]):
        yield batch([(row[url], row.get(label), row.get(caption)) for row in part.to_pylist()])


def pick(source: Source, names: list[str]) -> tuple[str, str | None, str | None]:
    """Return the columns for address, label and captions. Raises UserError where the first is missing."""
    url = columns.find(names, source.url_column)
    if url is None:
        raise UserError(
            f"{field_name(source, 'url_column')} is {source.url_column!r}, but {source.path} has the columns "
            f"{', '.join(names) or '(none)'}: name the one that holds the addresses."
        )
    return url, columns.find(names, source.label_column), columns.caption_name(source, names)


def batch(rows: list[tuple[object, object, object]]) -> pa.RecordBatch:
    """Return rows as Arrow, addresses escaped to UTF-8."""
    addresses = [escape(row[0].strip()) if isinstance(row[0], str) else None for row in rows]
    labels = [columns.label_of(row[1]) for row in rows]
    captions = [columns.captions_of(row[2]) for row in rows]
    arrays = [pa.array(values, field.type) for values, field in zip((addresses, labels, captions), SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def repeats(addresses: pa.ChunkedArray) -> dict[int, int]:
    """Return, for the rows whose address came before, how many times."""
    counts = addresses.value_counts()
    often = {entry["values"] for entry in counts.filter(pa.compute.greater(counts.field("counts"), 1)).to_pylist()}
    met: Counter[str] = Counter()
    earlier = {}
    if often:
        for row, address in enumerate(value.as_py() for value in addresses):
            if address in often:
                if met[address]:
                    earlier[row] = met[address]
                met[address] += 1
    return earlier


def random_access(source: Source) -> bool:
    """Say that any address can be read at any time."""
    return True


class Reader:
    """Reads whole files by address."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.folder = files.root(source.path)
        self.max_bytes = max_bytes

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the bytes at an address of the list."""
        address = unescape(path)
        if self.folder.split("://", 1)[0] in files.REMOTE_PROTOCOLS:
            return files.read_reference(self.folder, self.folder, address, self.max_bytes)
        relative = storage.is_local(address) and not posixpath.isabs(address) and not address.startswith("file://")
        return files.read_file(self.folder + address if relative else address, self.max_bytes)

    def close(self) -> None:
        """Hold nothing, close nothing."""
