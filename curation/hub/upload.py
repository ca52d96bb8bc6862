"""One file on its way to the Hub: its bytes, the hashes that git and the Hub know it by, and the cut into commits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from huggingface_hub import CommitOperationAdd
from huggingface_hub.hf_api import RepoFile

from granary.curation.store import storage
from granary.curation.store.hashing import digest_of

FIRST, LAST = (4, 500_000_000), (50, 5_000_000_000)  # files and bytes of the first commit, and of any


@dataclasses.dataclass(frozen=True)
class Upload:
    """One file to be sent.

    Args:
        path: in the repository.
        size: in bytes.
        url: where its bytes are, when they are in a file.
        data: its bytes, when it is small and was made here.
        written: SHA-256 that the run noted when it wrote the file, "" when it noted none; None for what is no file of
            a run.
    """

    path: str
    size: int
    url: str = ""
    data: bytes = b""
    written: str | None = None

    def open(self) -> BinaryIO:
        """Open the bytes."""
        return storage.open_read(self.url) if self.url else io.BytesIO(self.data)

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the bytes, hex; the file is read in pieces."""
        return self._hash(hashlib.sha256())

    @functools.cached_property
    def blob(self) -> str:
        """SHA-1 that git names the bytes by, hex."""
        return self._hash(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    def _hash(self, state: hashlib._Hash) -> str:
        with self.open() as file:
            return digest_of(file, state)

    def is_at(self, remote: RepoFile | None) -> bool:
        """Say whether the Hub's entry for the path, if any, holds these bytes."""
        if remote is None or remote.size != self.size:
            return False
        return remote.lfs.sha256 == self.sha256 if remote.lfs else remote.blob_id == self.blob

    @contextlib.contextmanager
    def addition(self) -> Iterator[CommitOperationAdd]:
        """Yield the operation that adds the file; the bytes are streamed when it is committed."""
        digest = bytes.fromhex(self.sha256)
        with contextlib.ExitStack() as stack:
            source: str | bytes | BinaryIO = self.data
            if self.url and storage.is_local(self.url):
                source = storage.filesystem(self.url)[1]
            elif self.url:
                file = stack.enter_context(self.open())
                source = file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(cast(io.RawIOBase, file))
            operation = CommitOperationAdd(self.path, source)
            operation.upload_info.sha256 = digest  # not read for it again
            yield operation


def batches(
    uploads: Iterable[Upload], first: tuple[int, int] = FIRST, last: tuple[int, int] = LAST
) -> Iterator[list[Upload]]:
    """Cut files into commits: small ones first, so that something stands on the Hub soon, then as few as is sound.

    Args:
        uploads: in the order they are sent.
        first: most files and bytes in the first commit; both double from one commit to the next.
        last: most files and bytes in any; a single larger file is a commit of its own.
    """
    (most, most_bytes), batch, size = first, list[Upload](), 0
    for upload in uploads:
        if batch and (len(batch) == most or size + upload.size > most_bytes):
            yield batch
            batch, size = [], 0
            most, most_bytes = min(2 * most, last[0]), min(2 * most_bytes, last[1])
        batch.append(upload)
        size += upload.size
    if batch:
        yield batch
