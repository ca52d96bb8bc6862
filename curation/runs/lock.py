"""One command at a time in a run directory: a small file says who works there.

A lock is made by a call that only one caller can win: O_EXCL on a local disk, a conditional put on an object store.
What a killed process left behind is taken over where that can be known, on the same machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from typing import Self

import psutil

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.trees import json_tree

LOCK = "run.lock"
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        host: name of the machine.
        namespace: of the process ids there; containers of one host name have others.
        process: its id.
        begun: when the process began, as the system counts it, so that another one with its id is told apart.
        started: time in UTC at which the lock was taken.
        key: drawn for this lock.
    """

    host: str
    namespace: str
    process: int
    begun: str
    started: str
    key: str

    @classmethod
    def this(cls) -> Self:
        """Return this process as the holder of a new lock."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        process = os.getpid()
        return cls(socket.gethostname(), _namespace(), process, begun_of(process), now, uuid.uuid4().hex)

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Return who holds a lock; None when its file says nothing, as for a moment after it was made."""
        try:
            fields = json_tree(data)
            return cls(**fields) if isinstance(fields, dict) else None
        except (ValueError, TypeError):
            return None

    def dump(self) -> bytes:
        """Return what stands in the file."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @property
    def dead(self) -> bool:
        """Whether the process is known to have ended; of another machine nothing is known."""
        here = (self.host, self.namespace) == (socket.gethostname(), _namespace())
        return here and begun_of(self.process) != self.begun

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.started}"


class Lock:
    """The lock of a run directory.

    Args:
        out: the run directory.
    """

    def __init__(self, out: str) -> None:
        self.out, self.url = out, storage.join(out, LOCK)
        self.holder = Holder.this()

    def acquire(self, steal: bool = False) -> None:
        """Take the lock.

        Args:
            steal: whoever holds it.

        Raises:
            UserError: another process holds it.
        """
        while not storage.create(self.url, self.holder.dump()):
            try:
                written = storage.read_bytes(self.url)
            except FileNotFoundError:  # it was released just now
                continue
            other = Holder.parse(written)
            if not (steal or (other and other.dead)):
                raise UserError(
                    f"out: {self.out} is being written by {other or 'another process'}; wait for its end, give another "
                    "--out, or, if it does not run any more, --steal-lock"
                )
            storage.remove_same(self.url, written)

    def release(self) -> None:
        """Give the lock back; one that was stolen stays with who stole it."""
        storage.remove_same(self.url, self.holder.dump())


@contextlib.contextmanager
def held(out: str, steal: bool = False) -> Iterator[None]:
    """Hold the lock of a directory in the block, if this is the first process of a distributed job.

    Its other processes work in the same directory. A folder that holds something else gets no lock: who works there
    refuses it.

    Raises:
        UserError: another process holds it.
    """
    names = set(storage.names(out)) - {LOCK}
    if not _first_process() or (names and "recipe.yaml" not in names):
        yield
        return
    lock = Lock(out)
    lock.acquire(steal)
    try:
        yield
    finally:
        lock.release()
        if storage.is_local(out):  # of work that was refused nothing stays, not even a folder
            with contextlib.suppress(OSError):
                os.rmdir(storage.filesystem(out)[1])


def _first_process() -> bool:
    """Say whether this is the process of rank 0, as torchrun, SLURM or Fabric tell it; alone it is."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def _namespace() -> str:
    """Return which set of process ids this one belongs to: two containers may have the same host name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def begun_of(process: int) -> str:
    """Return when a process began, "" when there is none; counted from the start of the machine where that is known.

    A clock that is set back or forth changes the times that are counted from 1970.
    """
    if sys.platform == "linux":
        return _ticks(process)
    try:
        return str(psutil.Process(process).create_time())
    except psutil.Error:
        return ""


def _ticks(process: int) -> str:
    """Return the start of a process in ticks since that of the machine, with the machine's own id for this start."""
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            ticks = file.read().rpartition(")")[2].split()[19]  # field 22; the name before may hold spaces
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {ticks}"
    except OSError:
        return ""
