"""The files of the pool that were dropped, as a table for a spreadsheet."""

from __future__ import annotations

import csv
import io

import pyarrow.compute as pc

from granary.curation.runs.lookup import ledger_tables
from granary.curation.runs.run import Run
from granary.curation.store import storage
from granary.curation.store.cells import written

COLUMNS = ("uri", "id", "stage", "reason", "representative", "similarity", "leaked_reference")


def write_dropped(run: Run) -> str:
    """Write report/dropped.csv, a row for each file of the pool that was dropped; returns its URL."""
    url = run.path("report", "dropped.csv")
    with storage.writing(url) as file:
        file.write((",".join(COLUMNS) + "\n").encode())
        for table in ledger_tables(run, [*COLUMNS, "role", "status"]):
            dropped = pc.and_(pc.equal(table["role"], "pool"), pc.equal(table["status"], "dropped"))
            lines = io.StringIO()
            rows = table.filter(dropped).select(COLUMNS).to_pylist()
            csv.writer(lines, lineterminator="\n").writerows([written(row[name]) for name in COLUMNS] for row in rows)
            file.write(lines.getvalue().encode("utf-8", "replace"))
    return url
