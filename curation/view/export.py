"""Rows of a page as a list to keep: CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.store.addresses import without_secrets
from granary.curation.store.cells import cell
from granary.curation.view.catalogue import Catalogue

COLUMNS = ("id", "uri", "status", "stage", "reason")


def exported(catalogue: Catalogue, rows: NDArray[np.int64], format: str) -> tuple[bytes, str]:
    """Return the rows as a file and its media type.

    Args:
        catalogue: of the run.
        rows: (m,) int64.
        format: csv, or jsonl.

    Raises:
        UserError: the format is another.
    """
    table = catalogue.ledger.select(COLUMNS).take(pa.array(rows))
    chosen = [{name: text and without_secrets(text) for name, text in row.items()} for row in table.to_pylist()]
    if format == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        return "".join(lines).encode("utf-8", "replace"), "application/jsonl"
    if format != "csv":
        raise UserError(f"format: {format[:20]!r} is none; there are csv and jsonl")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([cell(row[name] or "") for name in COLUMNS] for row in chosen)
    return file.getvalue().encode("utf-8", "replace"), "text/csv; charset=utf-8"
