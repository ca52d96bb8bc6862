"""Lists of addresses: text (one a line), CSV, TSV, lines of JSON, or Parquet; further columns become metadata.

A list is not trusted: a row is a path below the folder of the list or a plain address of a service on a network. With
`trust_paths` a local list may name any file and any fsspec URL. What is kept of a row is its number: its address may
hold secrets, and is read from the list again where it is fetched. The list is held in memory, about 100 bytes a row
and its metadata.
"""

from __future__ import annotations

import csv
import functools
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.download.client import Downloads
from granary.curation.errors import UserError
from granary.curation.sources import columns, files
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, escape, field_name, unescape
from granary.curation.sources.parquet import holds_bytes
from granary.curation.sources.sidecars import read_json
from granary.curation.store import storage
from granary.curation.store.addresses import stored

ENDINGS = (".txt", ".csv", ".tsv", ".jsonl")
PIECE_ROWS = 256
FURTHER = "further_cells"  # of a row that is longer than the header
HTTP = ("http", "https")
UNTRUSTED = "UntrustedPath"
WHAT_IS_TAKEN = (
    "a row is a path below the folder of the list or a plain http, s3, gs, hf or az address; trust_paths true takes "
    "any file and any chain"
)


class Row(TypedDict):
    """A row of the list."""

    address: str | None
    label: str | None
    captions: list[str]
    metadata: str | None


class UrlList(NamedTuple):
    """A parsed list.

    Args:
        table: address, label, captions, metadata, one row each.
        repeats: row -> how often what is stored of it came before.
    """

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
        yield candidate(source, piece, row, cells, listed.repeats.get(row))


def candidate(source: Source, piece: Piece, row: int, cells: Row, repeat: int | None) -> Candidate:
    """Return the candidate of a row, dead where its address is missing or not to be followed."""
    if not cells["address"]:
        error = ("NoUrl", "the row has no address")
        return Candidate(f"{source.name}/{piece.path}#{row}", piece.path, row, error=error)
    uri = f"{source.name}/{stored(cells['address'])}" + (f"#{repeat + 1}" if repeat else "")
    try:
        target(source, unescape(cells["address"]))
    except files.UnsafePath as unsafe:
        return Candidate(uri, piece.path, row, error=(UNTRUSTED, str(unsafe)))
    return Candidate(uri, piece.path, row, 0, cells["label"], tuple(cells["captions"]), cells["metadata"])


def target(source: Source, address: str) -> str:
    """Return what the address of a row leads to: a path or URL. Raises UnsafePath where the list is not trusted."""
    folder = files.root(source.path)
    protocol = address.partition("://")[0].lower() if "://" in address else ""
    if protocol in HTTP:
        return address
    chained = "::" in address and (protocol or not storage.is_local(folder))
    if protocol in files.REMOTE_PROTOCOLS and not chained:
        return address
    below = not protocol and not posixpath.isabs(address) and ".." not in address.split("/")
    if below and not chained:
        return folder + address
    if not source.trust_paths:
        raise files.UnsafePath(WHAT_IS_TAKEN)
    return address if protocol or chained or posixpath.isabs(address) else folder + address


def load(source: Source, stamp: str) -> UrlList:
    """Return the parsed list, kept for the process as long as its stamp is the same."""
    return parse(source.path, stamp, source.name, source.url_column, source.label_column, source.caption_column)


@functools.lru_cache(maxsize=4)
def parse(path: str, stamp: str, name: str, url: str, label: str, caption: str | None) -> UrlList:
    """Read a list. Raises UserError where it has no such column or cannot be read."""
    source = Source(name=name, path=path, url_column=url, label_column=label, caption_column=caption)
    try:
        batches = list(record_batches(source))
    except (pa.ArrowException, csv.Error, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name or 'source'}.path is {path!r}, a list that cannot be read: {error}") from error
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    return UrlList(table, repeats(address and stored(address) for address in table.column("address").to_pylist()))


SCHEMA = pa.schema(
    {"address": pa.string(), "label": pa.string(), "captions": pa.list_(pa.string()), "metadata": pa.string()}
)
Cells = Mapping[str, object]


def record_batches(source: Source) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the list in batches of SCHEMA."""
    ending = source.path.lower().rpartition(".")[2]
    with files.open_file(source.path) as file:
        if ending == "parquet":
            yield from parquet_batches(source, pq.ParquetFile(file))
            return
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        if ending in ("csv", "tsv"):
            reader = csv.DictReader(text, delimiter="\t" if ending == "tsv" else ",", restkey=FURTHER)
            column = pick(source, list(reader.fieldnames or []))
            yield batch(source, column, list(reader))
        elif ending == "jsonl":
            yield json_batch(source, text)
        else:
            lines = (line.strip() for line in text)
            yield batch(source, "url", [{"url": line} for line in lines if line and not line.startswith("#")])


def json_batch(source: Source, lines: Iterable[str]) -> pa.RecordBatch:
    """Return the rows of lines of JSON objects, whose keys are columns."""
    parsed = (read_json(line.encode("utf-8", "replace"))[0] for line in lines if line.strip())
    rows = [row if isinstance(row, dict) else {} for row in parsed]
    return batch(source, pick(source, list(dict.fromkeys(key for row in rows for key in row))), rows)


def parquet_batches(source: Source, file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet list; columns of bytes are not read."""
    schema = file.schema_arrow
    column = pick(source, schema.names)
    names = [field.name for field in schema if field.name == column or not holds_bytes(field.type)]
    for part in file.iter_batches(columns=names):
        yield batch(source, column, part.to_pylist())


def pick(source: Source, names: list[str]) -> str:
    """Return the column of the addresses. Raises UserError where it, or another that the user named, is missing."""
    url = columns.find(names, source.url_column)
    if url is None:
        raise UserError(
            f"{field_name(source, 'url_column')} is {source.url_column!r}, but {source.path} has the columns "
            f"{', '.join(names) or '(none)'}: name the one that holds the addresses."
        )
    columns.check_named(source, names)
    return url


def batch(source: Source, column: str, rows: Sequence[Cells]) -> pa.RecordBatch:
    """Return rows as Arrow, addresses escaped to UTF-8; `column` holds them."""
    values = [row.get(column) for row in rows]
    described = [columns.described(source, {key: row[key] for key in row if key and key != column}) for row in rows]
    arrays = [
        [escape(value.strip()) if isinstance(value, str) else None for value in values],
        [label for label, _, _ in described],
        [captions for _, captions, _ in described],
        [columns.metadata_of(rest) for _, _, rest in described],
    ]
    return pa.RecordBatch.from_arrays(
        [pa.array(cells, field.type) for cells, field in zip(arrays, SCHEMA, strict=True)], schema=SCHEMA
    )


def repeats(addresses: Iterable[str | None]) -> dict[int, int]:
    """Return, for the rows whose address came before, how many times."""
    met: Counter[str] = Counter()
    earlier = {}
    for row, address in enumerate(addresses):
        if address:
            if met[address]:
                earlier[row] = met[address]
            met[address] += 1
    return earlier


def random_access(source: Source) -> bool:
    """Say that any address can be read at any time."""
    return True


class Reader:
    """Reads whole files by the number of their row."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.source, self.max_bytes = source, max_bytes
        self.addresses = load(source, files.info(source.path)["stamp"]).table.column("address")
        self.downloads = Downloads(source.download, max_bytes, source.private_addresses)

    def expect(self, rows: Iterable[int]) -> None:
        """Begin to fetch what will be read, in this order."""
        targets = filter(None, map(self.target_or_none, rows))
        self.downloads.expect(target for target in targets if is_http(target))

    def target_or_none(self, row: int) -> str | None:
        """Return what a row leads to; None where reading it will say why not."""
        try:
            return self.target(row)
        except OSError:
            return None

    def target(self, row: int) -> str:
        """Return what a row leads to. Raises OSError where it leads nowhere."""
        address = self.addresses[row].as_py() if 0 <= row < len(self.addresses) else None
        if not address:
            raise OSError(f"the list has no address in row {row}")
        return target(self.source, unescape(address))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the bytes behind row `offset`."""
        where = self.target(offset)
        return self.downloads.read(where) if is_http(where) else files.read_file(where, self.max_bytes)

    def close(self) -> None:
        """Give up what was expected and not read."""
        self.downloads.close()


def is_http(address: str) -> bool:
    """Say whether an address is one of http or https."""
    return address.lower().startswith(("http://", "https://"))
