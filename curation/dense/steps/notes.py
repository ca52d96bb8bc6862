"""What was lost of annotations: noted by a unit in its marker, read again for the ledger and the dead letters."""

from __future__ import annotations

from typing import Literal, NamedTuple

from granary.curation.dense.texts import cleaned
from granary.curation.dense.tree import Problem
from granary.curation.runs.run import Marker, Output
from granary.curation.store import storage

Status = Literal["dead", "dropped", "part"]


class Note(NamedTuple):
    """What was lost of one annotation.

    Args:
        name: of the annotation.
        status: dead or dropped, all of it; part, what `part` names.
        part: key of a mask, name of a field, or "".
        error: short class name.
        message: what is wrong.
    """

    name: str
    status: Status
    part: str
    error: str
    message: str


def note(output: Output, name: str, status: Status, problem: Problem) -> None:
    """Note and count what was lost of an annotation, see `Note`."""
    output.counters[status] += status != "part"
    output.counters["parts lost"] += status == "part"
    output.notes.append(Note(name, status, cleaned(problem.part), problem.error, cleaned(problem.message)))


def read_notes(part: str) -> list[Note]:
    """Return what the unit noted that wrote a part file, whose URL is given."""
    marker = Marker.parse(storage.read_bytes(part.removesuffix(".parquet") + ".done"))
    return [Note(*fields) for fields in marker.notes]
