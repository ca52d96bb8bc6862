"""What of a unit could not be read: a bad file is a dead row, an outage stops the run."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from granary.curation.download.errors import PASSING
from granary.curation.download.guard import REFUSED
from granary.curation.images.decode import DecodeError
from granary.curation.runs.run import LOST
from granary.curation.sources import failure
from granary.curation.sources.urls import UNTRUSTED

FEWEST_LOST = 16  # fewer unreadable files are no sign of an outage, however small the unit
DEAD_LINKS = 0.99  # of a unit of a list of URLs: dead links are what such lists are made of, but one in a hundred lives
# What a machine, a network or a service fails with; the same file may be there an hour later, and what was refused may
# be allowed by then. By name: sources tell theirs as (class, message). FileNotFoundError is one where the listing saw
# the file.
OUTAGES = frozenset(
    (
        "OSError",
        "PermissionError",
        "TimeoutError",
        "FSTimeoutError",
        "ConnectionError",
        "ConnectionAbortedError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "BrokenPipeError",
        "BlockingIOError",
        "InterruptedError",
        "UnreadableFolder",
        UNTRUSTED,
        REFUSED,
        *PASSING,
    )
)


ALLOWED_BY = {UNTRUSTED: "trust_paths", REFUSED: "private_addresses"}  # what was refused -> field of its source


def what_allows(text: str) -> str:
    """Return a sentence that names the option for what a text says was refused; "" where it says no such thing."""
    fields = [field for kind, field in ALLOWED_BY.items() if kind in text]
    flags = " and ".join(f"--pool.{field} true" for field in fields)
    return f"Of lists of your own more is taken with {flags} (likewise seeds and references)." if fields else ""


class Readable(Protocol):
    """One file of a unit that was to be read."""

    @property
    def lost(self) -> bool:
        """Whether it could not be read, which says nothing about what it holds."""
        ...

    @property
    def reason(self) -> str:
        """Class of the error; "" where there is none."""
        ...


R = TypeVar("R", bound=Readable)


class TooManyUnreadable(Exception):
    """So much of a unit could not be read that its dataset would lack most of what it should hold."""


def check_lost(rows: Iterable[R], most: float, counters: collections.Counter[str]) -> Iterator[R]:
    """Yield the rows of a unit; raises TooManyUnreadable after the last when too many were lost.

    A network, a mount or a permission that fails takes thousands of good files with it, and the run would end well
    without them. Files that are no images do not count: a pool may hold any number of them.

    Args:
        rows: of one unit.
        most: the share of them that may be lost; 1 lets everything pass. Up to FEWEST_LOST - 1 rows always may.
        counters: of the unit; LOST becomes the number of those that the next run tries again.
    """
    reasons: collections.Counter[str] = collections.Counter()
    total = 0
    for row in rows:
        total += 1
        reasons[row.reason if row.lost else ""] += 1
        if row.reason in OUTAGES:
            counters[LOST] += 1
        yield row
    del reasons[""]
    if reasons.total() >= FEWEST_LOST and reasons.total() > most * total:
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise TooManyUnreadable(
            f"{reasons.total()} of {total} files could not be read ({counted}), more than max_unreadable {most}"
        )


def why_dead(error: DecodeError | OSError) -> dict[str, str]:
    """Return reason and message of a file that could not be read or decoded."""
    kind, message = (error.kind, str(error)) if isinstance(error, DecodeError) else failure(error)
    return {"reason": kind, "message": message}


class ChangedFile(OSError):
    """The bytes are not those that were hashed and embedded."""


def check_unchanged(data: bytes, sha256: str) -> None:
    """Raise ChangedFile when a file read again is not what it was."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ChangedFile("the file changed while the run was under way")
