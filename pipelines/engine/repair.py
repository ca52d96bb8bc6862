"""A run that meets a damaged part of its own removes it and makes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rich.console import Console

from granary.curation.errors import UserError
from granary.curation.runs.integrity import remove_damaged
from granary.curation.runs.run import Run
from granary.curation.runs.tables import DamagedPart
from granary.curation.store.printable import printable

T = TypeVar("T")


def repairing(out: str, work: Callable[[], T], console: Console) -> T:
    """Do the work of a run, again each time when a file of it is damaged: finished units are not done twice.

    Args:
        out: the run directory.
        work: what the command does, from its beginning.
        console: where the damage is named.

    Raises:
        DamagedPart: the file is as it was written, so that making it again would not help.
        UserError: it is damaged again after it was made anew, or what `work` raises.
    """
    repaired: set[str] = set()
    while True:
        try:
            return work()
        except DamagedPart as part:
            if part.url in repaired:
                raise UserError(f"{part.url} was made again and is damaged again; check disk and memory") from part
            _remove(out, part, console)
            repaired.add(part.url)


def _remove(out: str, part: DamagedPart, console: Console) -> None:
    damages = remove_damaged(Run(out.rstrip("/")), part.url)
    if not damages:
        raise part
    for damage in damages:
        line = f"{damage.path} is damaged: {damage.cause}; it is made again"
        console.print(printable(line, keep=""), soft_wrap=True)
