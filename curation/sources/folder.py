"""A folder tree: every regular file is a candidate unless it is hidden or its name is that of a companion.

A name without an ending, or with an unknown one, may be a picture's: decoding tells. What speaks of a picture is read
with it: KEY.json, KEY.txt, KEY.caption and KEY.cls beside it, as img2dataset writes them, its row of metadata.csv,
.jsonl or .parquet, and folders named like columns (label=cat/).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from granary.curation.sources import columns, contents, files, imagefolder, listing, sidecars
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.listing import File
from granary.curation.sources.model import Candidate, Piece, Source, Unread, failure, too_many_bytes
from granary.curation.sources.sidecars import Sidecars


def list_pieces(source: Source, left_out: LeftOut) -> Iterator[Piece]:
    """Yield one piece per picture, sorted by path, with what speaks of it; the rest is counted in `left_out`."""
    tables = Tables(source, left_out)
    listed = (file for file in listing.shards(source.path, ("",)) if not tables.take(file))
    for _, group in itertools.groupby(listed, key_of):
        yield from pieces_of(source, list(group), tables, left_out)
    tables.count_unused()


def pieces_of(source: Source, group: Sequence[File], tables: Tables, left_out: LeftOut) -> Iterator[Piece]:
    """Yield the pieces of files whose names begin alike: the pictures, each with its sidecars."""
    why = {file: why_left_out(source, file) for file in group}
    pictures = [file for file in group if not why[file]]
    beside = sidecars_of(pictures, group)
    spoken = set(itertools.chain.from_iterable(beside.values()))
    for file in group:
        if why[file] and file not in spoken:
            left_out["hidden files" if why[file] == contents.HIDDEN else contents.what(file.path), why[file]] += 1
    for picture in pictures:
        if picture not in spoken and contents.of_split(source, picture.path, left_out):
            yield piece_of(picture, beside[picture], tables.about(picture.path))


def piece_of(picture: File, beside: Sequence[File], table: File | None) -> Piece:
    """Return the piece of a picture; its stamp changes with what speaks of it."""
    said_by = [*beside, *([table] if table else [])]
    stamp = "+".join([picture.stamp, *(file.stamp for file in said_by)])
    paths = tuple(file.path for file in beside)
    where = (table.path, table.stamp) if table else ("", "")
    return Piece(picture.path, 0, 0, picture.size, 1, stamp, paths, *where)


def why_left_out(source: Source, file: File) -> str:
    """Return why a file is no candidate, "" where it is: of a glob whatever matches, else what may be a picture."""
    if file.stamp == "unlisted" or not source.path.endswith("/"):
        return ""
    if source.glob:
        return "" if listing.matcher(source.glob)(file.path) else f"does not match glob {source.glob}"
    kind = contents.kind_of(file.path)
    return {"hidden": contents.HIDDEN, "picture": "", "unknown": ""}.get(kind, contents.NO_PICTURE)


def key_of(file: File) -> str:
    """Return a path up to the first dot of its base name: in sorted order, what begins alike stands together."""
    folder, slash, base = file.path.rpartition("/")
    return folder + slash + base.partition(".")[0]


def sidecars_of(pictures: Sequence[File], group: Sequence[File]) -> dict[File, list[File]]:
    """Return the files that speak of each picture: KEY.txt, or KEY.jpg.txt, of KEY.jpg."""
    beside: dict[File, list[File]] = {picture: [] for picture in pictures}
    by_stem: dict[str, list[File]] = {}
    for picture in pictures:
        stem = picture.path.rpartition(".")[0]
        for key in () if is_sidecar(picture) else (picture.path, stem):  # of a glob that matches everything
            by_stem.setdefault(key, []).append(picture)
    for file in filter(is_sidecar, group):
        for picture in by_stem.get(file.path.rpartition(".")[0], []):
            beside[picture].append(file)
    return beside


def is_sidecar(file: File) -> bool:
    """Say whether a file may speak of a picture of the same name."""
    return file.path.rpartition(".")[2].lower() in sidecars.ENDINGS


class Tables:
    """The tables of a folder tree that speak of its pictures, met before the pictures of their folders.

    Args:
        source: resolved.
        left_out: is given the tables, and the rows, that speak of no picture.
    """

    def __init__(self, source: Source, left_out: LeftOut) -> None:
        self.source, self.left_out = source, left_out
        self.tables: dict[str, File] = {}  # by folder
        self.unused: dict[str, set[str]] = {}  # folder -> names of its table that no picture had yet

    def take(self, file: File) -> bool:
        """Keep a table, and say whether the file is one."""
        if not self.source.path.endswith("/") or contents.kind_of(file.path) != "metadata":
            return False
        folder = file.path[: file.path.rfind("/") + 1]
        try:
            rows = imagefolder.rows_by_name(files.join(self.source.path, file.path), file.stamp)
        except imagefolder.NoFileNames:
            self.left_out[contents.base_name(file.path), "has no column file_name"] += 1
            return True
        if folder in self.tables:
            self.left_out[contents.base_name(file.path), "its folder has another table"] += 1
        else:
            self.tables[folder], self.unused[folder] = file, set(rows)
        return True

    def about(self, path: str) -> File | None:
        """Return the table that speaks of a picture: the one of its folder, or of the nearest above."""
        folder = path
        while folder:
            folder = folder[: folder.rstrip("/").rfind("/") + 1]
            if folder in self.tables:
                self.unused[folder].discard(path[len(folder) :])
                return self.tables[folder]
        return None

    def count_unused(self) -> None:
        """Count the rows that name no picture."""
        for folder, names in self.unused.items():
            if names:
                self.left_out[f"rows of {self.tables[folder].path}", "no picture has that file_name"] += len(names)


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the file as a candidate, its bytes not read yet, with what is said of it."""
    uri = f"{source.name}/{piece.path}"
    if piece.stamp == "unlisted":
        yield Candidate(uri, piece.path, error=("UnreadableFolder", "the folder cannot be listed"))
    elif piece.size > max_bytes:
        yield Candidate(uri, piece.path, error=too_many_bytes(piece.size, max_bytes))
    else:
        read = read_sidecars(source, piece)
        beside = read.described(source, {**columns.partitions(piece.path), **row_of(source, piece)})
        name = piece.path.rsplit("/", 1)[-1]
        candidate = Candidate(uri, piece.path, 0, piece.size, name=name, unread=tuple(read.unread))
        yield replace(candidate, **{**beside._asdict(), "label": label_of(source, piece.path) or beside.label})


def read_sidecars(source: Source, piece: Piece) -> Sidecars:
    """Read the sidecars of a picture, or note why they cannot be read."""
    read = Sidecars()
    for path in piece.sidecars:
        ending = path.rpartition(".")[2].lower()
        try:
            read.data[ending] = files.read_file(files.join(files.root(source.path), path), sidecars.MAX_SIDECAR)
        except OSError as error:
            read.unread.append(Unread(ending, *failure(error)))
    return read


def row_of(source: Source, piece: Piece) -> Mapping[str, object]:
    """Return the row of the folder's table about a picture."""
    if not piece.table:
        return {}
    folder = piece.table[: piece.table.rfind("/") + 1]
    path = files.join(files.root(source.path), piece.table)
    return imagefolder.row_of(path, piece.table_stamp, piece.path[len(folder) :])


def label_of(source: Source, path: str) -> str | None:
    """Return the first sub-folder below the root where labels are asked for; None at the root itself."""
    return path.split("/", 1)[0] if source.labels == "folder" and "/" in path else None


def random_access(source: Source) -> bool:
    """Say that any file can be read at any time."""
    return True


class Reader:
    """Reads whole files."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self.root = files.root(source.path)
        self.max_bytes = max_bytes

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return the bytes of a file; its size of the listing is not trusted."""
        return files.read_file(files.join(self.root, path), self.max_bytes)

    def close(self) -> None:
        """Hold nothing, close nothing."""
