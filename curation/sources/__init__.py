"""Sources: where a pool, a seed set or a reference set comes from, and how its candidates are read.

A source is resolved once, cut into pieces, and read piece by piece; `Reader` reads single candidates again.
Each kind is a module of this package.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Protocol

from granary.curation.download.client import NoDownloads
from granary.curation.errors import UserError
from granary.curation.sources import dataset, detect, files, folder, listing, parquet, urls, webdataset
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.model import Candidate, Piece, Source, failure, field_name

__all__ = [
    "Candidate",
    "Piece",
    "Reader",
    "Source",
    "check_apart",
    "failure",
    "list_pieces",
    "random_access",
    "read_piece",
    "resolve",
]

KINDS: dict[str, ModuleType] = {
    "folder": folder,
    "webdataset": webdataset,
    "parquet": parquet,
    "dataset": dataset,
    "urls": urls,
}


def resolve(source: Source) -> Source:
    """Return the source with its kind settled and its path absolute; folders end in a slash.

    Raises UserError where there is no such path, or it is not of the kind asked for.
    """
    if source.path.startswith(dataset.HUB) and "://" not in source.path:
        settled = source.model_copy(update={"kind": "dataset"})
    else:
        path = files.absolute(source.path)
        what = look(source, path)
        path = detect.dataset_of_run(path.rstrip("/") + "/") if what == "directory" else path
        placed = source.model_copy(update={"path": path})
        kind = detect.detect(placed, what) if source.kind == "auto" else source.kind
        settled = placed.model_copy(update={"kind": kind})
    detect.check(settled)
    return settled


def check_apart(out: str, sources: Mapping[str, Sequence[Source]]) -> None:
    """Refuse a run directory inside a folder that it reads: the next run would read it too.

    Args:
        out: the run directory, a path or URL.
        sources: of each role, resolved.

    Raises:
        UserError: it lies inside one of them.
    """
    inside = files.absolute(out).rstrip("/") + "/"
    for source in itertools.chain.from_iterable(sources.values()):
        if source.path.endswith("/") and inside.startswith(source.path):
            raise UserError(f"out: {out} lies inside {source.name} ({source.path}); give a folder beside it")


def look(source: Source, path: str) -> str:
    """Return what stands at a path: file, directory, or pattern of names that are there."""
    subject = f"{field_name(source, 'path')} is {source.path!r}"
    try:
        kind = str(files.info(path)["type"])
    except FileNotFoundError:
        kind = "pattern" if files.MAGIC.search(path) and listing.first_match(path) else "missing"
    except (OSError, ValueError) as error:
        raise UserError(f"{subject}, which cannot be read: {error}") from error
    if kind not in ("file", "directory", "pattern"):
        choices = "a folder, a tar, Parquet, text or CSV file, a pattern of tar or Parquet files, or hf:ORG/NAME"
        state = "there is nothing there" if kind == "missing" else "it is not a regular file"
        raise UserError(f"{subject}, but {state}: give {choices}.")
    return kind


def list_pieces(source: Source, left_out: LeftOut | None = None) -> Iterator[Piece]:
    """Yield the pieces of a resolved source in an order that depends on names alone; reads no image.

    Args:
        source: resolved.
        left_out: is given (what, why) -> how many of the files that are passed over, when all pieces were taken.
    """
    yield from KINDS[source.kind].list_pieces(source, LeftOut() if left_out is None else left_out)


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the candidates of a piece; what cannot be read is a candidate with an error.

    Files above `max_bytes` are not read. Holds one item at a time (Parquet: a batch of 16 rows).
    """
    yield from KINDS[source.kind].read_piece(source, piece, max_bytes)


def random_access(source: Source) -> bool:
    """Say whether candidates can be read in any order at about the same cost."""
    return bool(KINDS[source.kind].random_access(source))


class KindReader(Protocol):
    """What the module of each kind has as `Reader`."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the original bytes."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Reader:
    """Reads candidates again by (path, offset, size); cheap in pool order. Use as a context manager."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.reader: KindReader = KINDS[source.kind].Reader(source, max_bytes)

    def expect(self, offsets: Iterable[int]) -> None:
        """Say which rows will be read next, in this order, so that those of a list are fetched ahead."""
        if isinstance(self.reader, urls.Reader):
            self.reader.expect(offsets)

    def fetch_nothing(self) -> None:
        """Refuse from now on what a row only names by an address: reading it is an OSError."""
        if isinstance(self.reader, parquet.Reader | dataset.Reader):
            self.reader.downloads = NoDownloads(self.reader.downloads.options, 0)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the original bytes. Raises OSError, whatever failed."""
        return files.as_os_errors(lambda: bytes(self.reader.read(path, offset, size)))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()
