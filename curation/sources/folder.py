"""A folder tree: every regular file is a candidate whatever its ending; decoding tells what is no image."""

from __future__ import annotations

from collections.abc import Iterator

from granary.curation.sources import files, listing
from granary.curation.sources.model import Candidate, Piece, Source, too_many_bytes


def list_pieces(source: Source) -> Iterator[Piece]:
    """Yield one piece per file, sorted by path."""
    matches = listing.matcher(source.glob) if source.glob else None
    for file in listing.shards(source.path, ("",)):
        if matches is None or file.path.endswith("/") or matches(file.path):
            yield Piece(file.path, 0, 0, file.size, 1, file.stamp)


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
