"""The dead letters of a run: what could not be read or made, where and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.store.schema import DEAD_LETTER


class DeadLetter(NamedTuple):
    """One thing that was lost.

    Args:
        uri: of the file, or of the row of a plan.
        stage: at which it was lost.
        error: class of the error.
        message: what the error says.
        part: what of the file was lost; "" for all of it.
    """

    uri: str
    stage: str
    error: str
    message: str
    part: str = ""


def write_dead_letters(letters: Iterable[DeadLetter], output: Output) -> None:
    """Write dead letters as one row group, and count them by error."""
    rows = [letter._asdict() for letter in letters]
    output.counters.update(row["error"] for row in rows)
    output.write(pa.Table.from_pylist(rows, DEAD_LETTER))


def dead_rows(run: Run, stage: str, name: str, uri: str = "uri") -> Iterator[DeadLetter]:
    """Yield a dead letter for each row of a finished stage whose status is dead.

    Args:
        run: the run directory.
        stage: whose parts have the columns status, reason and message.
        name: of the stage in the letters.
        uri: column that names a row.
    """
    for url in run.parts(stage):
        table = read_table(url, [uri, "status", "reason", "message"])
        for row in table.filter(pc.equal(table["status"], "dead")).to_pylist():
            yield DeadLetter(row[uri], name, row["reason"], row["message"])
