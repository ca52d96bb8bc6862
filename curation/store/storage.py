"""Files behind fsspec URLs: the same calls for a local path, s3://, gs://, hf:// and memory://.

A write is atomic: readers see the whole file or none. Reads of remote files are retried.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

T = TypeVar("T")
U = TypeVar("U")
AT_ONCE = 32  # requests to a store
FINAL_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOSPC,
    errno.EFBIG,
}

if importlib.util.find_spec("s3fs") is None:
    for scheme in ("s3", "s3a"):
        fsspec.register_implementation(scheme, "granary.curation.store.s3.ArrowS3", clobber=True)


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of `url` and the path inside it."""
    fs, path = fsspec.core.url_to_fs(os.fspath(url))
    return fs, path


def is_local(url: str) -> bool:
    """Say whether `url` is a path of this machine."""
    return "://" not in url or url.startswith("file://")


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL with single slashes."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)]) if parts else url


def exists(url: str) -> bool:
    """Say whether a file or folder stands at `url`."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def retrying(action: Callable[[], T], attempts: int = 4, pause: float = 0.5) -> T:
    """Call `action`, again after a pause when it fails with an OSError that can pass.

    A missing file, a refused permission and a full disk are final and raised at once.
    """
    for attempt in range(attempts):
        try:
            return action()
        except OSError as error:
            final = error.errno in FINAL_ERRNOS or isinstance(error, FileNotFoundError | PermissionError)
            if final or attempt == attempts - 1:
                raise
            time.sleep(pause * 2**attempt)
    raise AssertionError("unreachable")


def read_bytes(url: str, start: int | None = None, length: int | None = None) -> bytes:
    """Read a file, or `length` bytes of it from offset `start`."""
    fs, path = filesystem(url)
    end = None if length is None else (start or 0) + length
    read = lambda: cast(bytes, fs.cat_file(path, start=start, end=end))  # noqa: E731
    return read() if isinstance(fs, LocalFileSystem) else retrying(read)


def open_read(url: str) -> BinaryIO:
    """Open a file for reading bytes, with random access."""
    fs, path = filesystem(url)
    return cast(BinaryIO, fs.open(path, "rb"))


@contextlib.contextmanager
def writing(url: str) -> Iterator[BinaryIO]:
    """Open `url` for writing bytes; it appears whole at the end of the block, or not at all.

    Local files go to a temporary name, are flushed to disk and renamed. What goes to an object store is written to a
    temporary file of this machine and uploaded when the block is done: a failed block has sent nothing, and a failed
    upload is tried again.
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile(prefix="granary-") as spool:
            yield cast(BinaryIO, spool)
            spool.flush()
            retrying(lambda: upload(fs, spool.name, path))
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as local:
            yield local
            local.flush()
            os.fsync(local.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def upload(fs: fsspec.AbstractFileSystem, file: str, path: str) -> None:
    """Upload a local file."""
    if isinstance(fs, MemoryFileSystem):  # whose put_file shows the file before it is whole
        with open(file, "rb") as local:
            fs.pipe_file(path, local.read())
    else:
        fs.put_file(file, path)


def local_folder(url: str) -> str:
    """Return a folder of this machine with the files of `url`: itself, or a copy kept in the user's cache.

    For libraries that read a model from a folder. A copy belongs to one state of the files: when one changes there, it
    is made anew. Where nothing stands at `url`, the copy is empty.
    """
    if is_local(url):
        return url.removeprefix("file://")
    fs, path = filesystem(url)
    files = sorted(fs.find(path))
    state = [url, *(f"{file} {fs.checksum(file)}" for file in files)]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(cache, "granary", "models", hashlib.sha256("\n".join(state).encode()).hexdigest()[:32])
    if os.path.isdir(folder):
        return folder
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as partial:
        copy = os.path.join(partial, "copy")
        os.mkdir(copy)
        for file in files:
            parts = file.removeprefix(path).strip("/").split("/")
            if {"", ".", ".."} & set(parts):
                raise OSError(errno.EINVAL, f"{url} holds a file whose name leads elsewhere", file)
            target = os.path.join(copy, *parts)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            retrying(functools.partial(fs.get_file, file, target))
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(copy, folder)
    return folder


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole file, atomically."""
    with writing(url) as file:
        file.write(data)


def create(url: str, data: bytes) -> bool:
    """Write a file that is not there yet; returns False when there is one, also one that another writes just now."""
    fs, path = filesystem(url)
    try:
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data, mode="create")
            return True
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "xb") as file:
            file.write(data)
        return True
    except FileExistsError:
        if exists(url):
            return False
        raise


def remove_same(url: str, data: bytes) -> None:
    """Remove a file that holds these bytes; another one that has taken its place, or none, is left alone."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        if not isinstance(fs, LocalFileSystem):
            if fs.cat_file(path) == data:
                fs.rm_file(path)
            return
        with open(path, "rb") as file:
            _alone(file)
            there = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            if there and file.read() == data:
                os.remove(path)


def _alone(file: BinaryIO) -> None:
    """Wait until no other process of this machine does the same with a file."""
    if sys.platform != "win32":
        import fcntl

        with contextlib.suppress(OSError):  # a file system without such locks
            fcntl.flock(file, fcntl.LOCK_EX)


def remove(url: str) -> None:
    """Remove a file or a folder with all it holds; nothing there is no error."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        if isinstance(fs, LocalFileSystem):
            fs.rm(path, recursive=True)
            return
        for file in fs.find(path):  # rm itself would take brackets in a name for a pattern
            fs.rm_file(file)


def names(url: str) -> list[str]:
    """Return the sorted names of the entries of a folder; empty when there is no such folder."""
    fs, path = filesystem(url)
    try:
        entries: Sequence[object] = (
            fs.ls(path, detail=False, refresh=True) if not isinstance(fs, LocalFileSystem) else os.listdir(path)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(os.path.basename(str(entry).rstrip("/")) for entry in entries)


def sizes(url: str) -> dict[str, int]:
    """Return the sizes in bytes of the files of a folder by name, of one listing; none when there is no such folder."""
    fs, path = filesystem(url)
    try:
        if not isinstance(fs, LocalFileSystem):
            entries = fs.ls(path, detail=True, refresh=True)
            return {os.path.basename(one["name"]): int(one["size"]) for one in entries if one["type"] == "file"}
        found = {}
        with os.scandir(path) as listed:
            for entry in listed:
                with contextlib.suppress(FileNotFoundError):  # removed since
                    found[entry.name] = entry.stat().st_size
        return found
    except (FileNotFoundError, NotADirectoryError):
        return {}


def side_by_side(url: str, action: Callable[[U], T], items: Sequence[U]) -> list[T]:
    """Return `action` of each item in order: of many at a time where the files of `url` are far away."""
    if is_local(url) or len(items) < 2:
        return [action(item) for item in items]
    with concurrent.futures.ThreadPoolExecutor(min(AT_ONCE, len(items)), "granary-storage") as pool:
        return list(pool.map(action, items))


def size(url: str) -> int:
    """Return the size of a file in bytes."""
    fs, path = filesystem(url)
    return int(os.path.getsize(path) if isinstance(fs, LocalFileSystem) else fs.size(path))
