"""Sources: where a pool, a seed set or a reference set comes from, and how its candidates are read.

A source is resolved once, cut into pieces, and read piece by piece; `Reader` reads single candidates again.
Each kind is a module of this package.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import Protocol

import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.sources import columns, dataset, files, folder, listing, parquet, urls, webdataset
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
SIDE_ENDINGS = (".md", ".json", ".txt", ".csv", ".idx", ".gitattributes")  # found beside shards, no images


def resolve(source: Source) -> Source:
    """Return the source with its kind settled and its path absolute; folders end in a slash.

    Raises UserError where there is no such path, or it is not of the kind asked for.
    """
    if source.path.startswith(dataset.HUB) and "://" not in source.path:
        settled = source.model_copy(update={"kind": "dataset"})
    else:
        path = files.absolute(source.path)
        what = look(source, path)
        path = path.rstrip("/") + "/" if what == "directory" else path
        placed = source.model_copy(update={"path": path})
        kind = detect(placed, what) if source.kind == "auto" else source.kind
        settled = placed.model_copy(update={"kind": kind})
    check(settled)
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


def detect(source: Source, what: str) -> str:
    """Return the kind of what stands at the path of a source."""
    if source.glob is not None or source.labels == "folder":
        return "folder"
    if what == "directory":
        return detect_folder(source)
    path = (listing.first_match(source.path) if what == "pattern" else source.path).lower()
    if path.endswith(webdataset.ENDINGS):
        return "webdataset"
    if path.endswith(parquet.ENDINGS):
        return "parquet" if what == "pattern" else detect_parquet(source, source.path)
    if what == "pattern":
        subject = f"{field_name(source, 'path')} is {source.path!r}"
        raise UserError(f"{subject}: a pattern names tar or Parquet files; for images give the folder and a glob.")
    return "urls" if path.endswith(urls.ENDINGS) else "folder"


def detect_folder(source: Source) -> str:
    """Return webdataset, parquet or dataset for a folder that holds nothing else, else folder."""
    if dataset.is_saved(source.path):
        return "dataset"
    tars = tables = False
    for file in listing.walk(source.path):
        name = file.path.lower()
        tars |= name.endswith(webdataset.ENDINGS)
        tables |= name.endswith(parquet.ENDINGS)
        known = (*webdataset.ENDINGS, *parquet.ENDINGS, *SIDE_ENDINGS)
        if not name.endswith(known) and not name.rsplit("/", 1)[-1].startswith((".", "_")):
            return "folder"
    return "webdataset" if tars else "parquet" if tables else "folder"


def detect_parquet(source: Source, path: str) -> str:
    """Return parquet for a file with an image column, urls for one with a column of addresses."""
    try:
        with files.open_file(path) as file:
            schema = pq.read_schema(file)
    except parquet.FAILURES:
        return "parquet"
    with contextlib.suppress(UserError):
        return "parquet" if parquet.choose_columns(source, schema) else "folder"
    if columns.find(schema.names, source.url_column):
        return "urls"
    raise UserError(
        f"{field_name(source, 'path')} is {source.path!r} with the columns {', '.join(schema.names)}: none "
        f"of them is image_column ({source.image_column!r}) or url_column ({source.url_column!r})."
    )


def check(source: Source) -> None:
    """Raise UserError where options or path do not fit the kind."""
    for option, default in (("glob", None), ("labels", "none")):
        value = getattr(source, option)
        if source.kind != "folder" and value != default:
            subject = f"{field_name(source, option)} is {value!r}"
            raise UserError(f"{subject}, which is for folders, but {source.path!r} is read as {source.kind}.")
    if source.kind == "dataset":
        dataset.check(source)
    elif source.kind == "urls":
        if source.path.endswith("/"):
            subject = f"{field_name(source, 'path')} is {source.path!r}, a folder"
            raise UserError(f"{subject}; a list of addresses is one text, CSV or Parquet file.")
        urls.load(source, files.info(source.path)["stamp"])


def list_pieces(source: Source) -> Iterator[Piece]:
    """Yield the pieces of a resolved source in an order that depends on names alone; reads no image."""
    yield from KINDS[source.kind].list_pieces(source)


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

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the original bytes. Raises OSError, whatever failed."""
        return files.as_os_errors(lambda: bytes(self.reader.read(path, offset, size)))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()
