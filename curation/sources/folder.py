"""A folder tree: every regular file is a candidate unless it is hidden or its name is that of a companion.

A name without an ending, or with an unknown one, may be a picture's: decoding tells.
"""

from __future__ import annotations

from collections.abc import Iterator

from granary.curation.sources import contents, files, listing
from granary.curation.sources.contents import LeftOut
from granary.curation.sources.listing import File
from granary.curation.sources.model import Candidate, Piece, Source, too_many_bytes


def list_pieces(source: Source, left_out: LeftOut) -> Iterator[Piece]:
    """Yield one piece per file, sorted by path; companions and hidden files are counted in `left_out`."""
    for file in listing.shards(source.path, ("",)):
        if is_taken(source, file, left_out):
            yield Piece(file.path, 0, 0, file.size, 1, file.stamp)


def is_taken(source: Source, file: File, left_out: LeftOut) -> bool:
    """Say whether a file is a candidate: of a glob whatever matches, else what may be a picture by its name."""
    if file.stamp == "unlisted" or not source.path.endswith("/"):
        return True
    if source.glob:
        taken, why = listing.matcher(source.glob)(file.path), f"does not match glob {source.glob}"
    else:
        kind = contents.kind_of(file.path)
        taken, why = kind in ("picture", "unknown"), "hidden" if kind == "hidden" else contents.NO_PICTURE
    if not taken:
        left_out["hidden files" if why == "hidden" else contents.what(file.path), why] += 1
    return taken and contents.of_split(source, file.path, left_out)


def read_piece(source: Source, piece: Piece, max_bytes: int) -> Iterator[Candidate]:
    """Yield the file as a candidate, its bytes not read yet."""
    uri = f"{source.name}/{piece.path}"
    if piece.stamp == "unlisted":
        yield Candidate(uri, piece.path, error=("UnreadableFolder", "the folder cannot be listed"))
    elif piece.size > max_bytes:
        yield Candidate(uri, piece.path, error=too_many_bytes(piece.size, max_bytes))
    else:
        yield Candidate(uri, piece.path, 0, piece.size, label=label_of(source, piece.path))


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
