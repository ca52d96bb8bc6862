"""Read JSON Lines, one record a line, plain or gzipped, holding one line at a time."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

from granary.curation.dense.readers.record import Record
from granary.curation.sources import Source, failure, files, listing

ENDINGS = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
BLOCK = 1 << 20


def records(source: Source, max_bytes: int, endings: Sequence[str] = ENDINGS) -> Iterator[Record]:
    """Yield the lines of a file, or of every such file of a folder, as `file:line`; blank lines are none.

    A line above `max_bytes` is passed over and noted; a file that breaks off ends with a record that says so.

    Args:
        source: of the lines.
        max_bytes: most bytes of a line.
        endings: of the files of a folder that are read.
    """
    for file in listing.shards(source.path, tuple(endings)):
        number = 0
        try:
            with _opened(files.join(files.root(source.path), file.path)) as lines:
                for number, line in enumerate(_lines(lines, max_bytes), 1):
                    if line is None:
                        error = ("TooManyBytes", f"the line is longer than the limit of {max_bytes} bytes")
                        yield Record(f"{file.path}:{number}", error=error)
                    elif line.strip():
                        yield _record(f"{file.path}:{number}", line)
        except (OSError, EOFError, zlib.error) as error:
            yield Record(f"{file.path}:{number + 1}", error=failure(error))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    with files.open_file(path) as raw:
        if not path.endswith(".gz"):
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield cast(BinaryIO, unpacked)


def _record(name: str, line: bytes) -> Record:
    try:
        return Record(name, text=line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Record(name, error=("InvalidJson", f"the line is not UTF-8: {error.reason}"))


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Yield lines; None for one that is too long."""
    while line := file.readline(max_bytes + 1):
        if len(line) <= max_bytes:
            yield line
            continue
        while not line.endswith(b"\n") and (line := file.readline(BLOCK)):
            pass
        yield None
