"""What a reader lists: one record per annotated image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One annotated image, not read yet.

    Args:
        name: of the annotation in its source, unique: a relative path, or `file:line`.
        path: of the file, relative to the source, where it holds this record alone; else "".
        text: the record as JSON where its file holds many.
        size, stamp: of the file; they change when it does.
        error: (class, message) when it cannot be read at all.
    """

    name: str
    path: str = ""
    text: str = ""
    size: int = 0
    stamp: str = ""
    error: tuple[str, str] | None = None
