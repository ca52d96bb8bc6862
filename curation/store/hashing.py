"""Digests of files: of what is written on its way, of what is there in pieces."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

PIECE = 1 << 20  # bytes read at a time


def digest_of(file: BinaryIO, state: hashlib._Hash) -> str:
    """Return the digest, hex, of what a hash has seen and a file still holds; it is read in pieces."""
    while piece := file.read(PIECE):
        state.update(piece)
    return state.hexdigest()


class HashingFile:
    """A binary file for writing in sequence that hashes what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: bytes | memoryview) -> int:
        """Write and hash bytes."""
        view = memoryview(data).cast("B")
        if self.file.closed:  # the unit has failed, and pyarrow ends every file it began, at the latest when collected
            return len(view)
        self.hash.update(view)
        self.size += len(view)
        self.file.write(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is complete."""

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self.size

    def close(self) -> None:
        """Leave the file open: its owner closes it."""
