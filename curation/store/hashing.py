"""What is written is hashed on its way."""

from __future__ import annotations

import hashlib
from typing import BinaryIO


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
