"""Files of a source: listing, opening and reading, local or behind fsspec, with every failure an OSError."""

from __future__ import annotations

import functools
import os
import posixpath
import re
import stat
from collections.abc import Callable, Mapping
from typing import BinaryIO, TypedDict, TypeVar

from granary.curation.download.client import Downloads
from granary.curation.download.options import Download
from granary.curation.errors import UserError
from granary.curation.sources.model import escape, unescape
from granary.curation.store import storage
from granary.curation.store.addresses import stored

T = TypeVar("T")
MAGIC = re.compile(r"[*?\[{]")
READ_CHUNK = 1 << 20
# What a file that someone else wrote may make us read: services on a network, never this machine.
REMOTE_PROTOCOLS = frozenset(["http", "https", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl"])
CHANGE_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "size",
)


class TooManyBytes(OSError):
    """A file is larger than the limit."""


class UnsafePath(OSError):
    """A path inside somebody's data points outside of the source."""


def as_os_errors(action: Callable[[], T]) -> T:
    """Call `action`; what a remote file system raises in its own classes becomes an OSError."""
    try:
        return action()
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def absolute(path: str) -> str:
    """Return the path as it is kept: local paths absolute and without file://, URLs as written."""
    if not storage.is_local(path):
        return path
    local = os.path.expanduser(path.removeprefix("file://"))
    return os.path.abspath(local) + ("/" if local.endswith("/") and local != "/" else "")


def root(path: str) -> str:
    """Return the folder that relative paths of a resolved source start from (folders end in a slash)."""
    static = MAGIC.split(path, maxsplit=1)[0]
    return path if path.endswith("/") else static[: static.rfind("/") + 1]


def join(folder: str, relative: str) -> str:
    """Return the path of a listed file below `folder`."""
    return folder + unescape(relative)


class Info(TypedDict):
    """What stands at a path: type (file, directory, other), bytes, and a text that changes when the file does."""

    type: str
    size: int
    stamp: str


def info(path: str) -> Info:
    """Return type (file, directory, other), size and stamp of a path, symbolic links followed."""
    if storage.is_local(path):
        status = os.stat(path)
        mode = status.st_mode
        kind = "file" if stat.S_ISREG(mode) else "directory" if stat.S_ISDIR(mode) else "other"
        return {"type": kind, "size": status.st_size, "stamp": f"{status.st_size}-{status.st_mtime_ns}"}

    def ask() -> dict[str, object]:
        fs, inner = storage.filesystem(path)
        return fs.info(inner)

    entry = as_os_errors(lambda: storage.retrying(ask))
    size = int(str(entry.get("size") or 0))
    return {"type": str(entry["type"]), "size": size, "stamp": remote_stamp(entry)}


def placed(field: str, path: str) -> str:
    """Return the absolute path of what is there, of a folder with a slash at its end.

    Args:
        field: of the recipe, for messages.
        path: a path or URL.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    place = absolute(path)
    try:
        kind = info(place)["type"]
    except FileNotFoundError:
        raise UserError(f"{field}: there is nothing at {path!r}; give a folder or a file that is there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {path!r} cannot be read: {error}") from error
    return place.rstrip("/") + "/" if kind == "directory" else place


def exists(path: str) -> bool:
    """Say whether something can be seen at a path."""
    try:
        info(path)
    except OSError:
        return False
    return True


def remote_stamp(entry: Mapping[str, object]) -> str:
    """Return what a remote listing says about the state of a file."""
    return "-".join(str(entry[key]) for key in CHANGE_KEYS if entry.get(key) is not None)


def open_file(path: str) -> BinaryIO:
    """Open a regular file for random access; anything else (a fifo would block) is an OSError."""
    if not storage.is_local(path):
        return as_os_errors(lambda: storage.retrying(lambda: storage.open_read(path)))
    local = path.removeprefix("file://")
    file = open(local, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"not a regular file: {escape(local)}")
    return file


def read_file(path: str, max_bytes: int) -> bytes:
    """Return all bytes of a file; one that is larger than `max_bytes` is not read through."""
    opener = open_file if storage.is_local(path) else storage.open_read

    def read() -> bytes:
        with opener(path) as file:
            return file.read(max_bytes + 1)

    data = read() if storage.is_local(path) else as_os_errors(lambda: storage.retrying(read))
    if len(data) > max_bytes:
        raise TooManyBytes(f"more than the limit of {max_bytes} bytes")
    return data


def read_range(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return up to `size` bytes from `offset`, by pieces: a header may claim more than there is."""
    file.seek(offset)
    parts = []
    while size > 0 and (part := file.read(min(size, READ_CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_reference(
    top: str, folder: str, reference: str, max_bytes: int, download: Callable[[str], bytes] | None = None
) -> bytes:
    """Read a path written inside a data file: relative to `folder`, inside `top`, or on a remote service.

    Everything else is refused: data must not choose files of the machine that reads it, nor its neighbours.

    Args:
        top: folder of the source.
        folder: of the data file.
        reference: what it names.
        max_bytes: a larger file is not read.
        download: fetches an address of http or https; by default from public hosts alone.
    """
    protocol = reference.split("://", 1)[0].lower() if "://" in reference else ""
    if protocol in ("http", "https"):
        return (download or functools.partial(download_once, max_bytes))(reference)
    if "::" in reference or (protocol and protocol not in REMOTE_PROTOCOLS):
        raise UnsafePath(f"only files inside the source and remote URLs are read, not {stored(reference)}")
    if protocol:
        return read_file(reference, max_bytes)
    if storage.is_local(top):
        target = os.path.realpath(os.path.join(folder, reference))
        inside = target.startswith(os.path.realpath(top).rstrip("/") + "/")
    else:
        target, base = (storage.join(folder, reference), top)
        scheme, _, rest = target.partition("://")
        target = f"{scheme}://{posixpath.normpath(rest)}"
        inside = not reference.startswith("/") and target.startswith(base)
    if not inside:
        raise UnsafePath(f"the path leads out of the source: {stored(reference)}")
    return read_file(target, max_bytes)


def download_once(max_bytes: int, address: str) -> bytes:
    """Fetch one public address."""
    downloads = Downloads(Download(), max_bytes)
    try:
        return downloads.read(address)
    finally:
        downloads.close()
