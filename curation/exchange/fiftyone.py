"""The pictures of a curation with their rows of the ledger, as a folder that FiftyOne and cleanvision read.

`data/0000007.png` is the eighth picture, its bytes as they are; `labels.csv` says of each what the ledger says, in the
columns of FiftyOne's `CSVDataset`: `filepath`, below `data`, and fields of the sample, lists with commas. What FiftyOne
calls `id` is its own, so the id of the ledger is `granary_id`
(https://docs.voxel51.com/user_guide/import_datasets.html). cleanvision reads `data`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from granary.curation.errors import UserError
from granary.curation.exchange.webdataset import ending_of
from granary.curation.runs.facts import read_facts
from granary.curation.runs.lookup import LOCATOR, open_run
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.curation.sources import Reader
from granary.curation.steps.unreadable import check_unchanged
from granary.curation.store import storage
from granary.curation.store.cells import written
from granary.curation.store.schema import CURATED_LEDGER

LABELS, DATA = "labels.csv", "data"


class Copied(NamedTuple):
    """Pictures that were written, and files that cannot be read any more."""

    pictures: int
    lost: int


def write_fiftyone(url: str, out: str) -> Copied:
    """Write every readable picture of the pool of a finished curation, kept or dropped, and what was decided of it.

    Args:
        url: of the run directory.
        out: a new folder, or one where the same run was being written.

    Raises:
        UserError: there is no finished curation, or `out` holds something else.
    """
    read_facts(url.rstrip("/"))
    (run, recipe), out = open_run(url.rstrip("/")), out.rstrip("/")
    if strange := sorted(name for name in storage.names(out) if name not in (LABELS, DATA) and ".tmp" not in name):
        raise UserError(f"out: {out} holds {strange[0]}, which is not of this run; give a new folder")
    pictures = lost = 0
    names = ["granary_id" if name == "id" else name for name in CURATED_LEDGER.names]
    with storage.writing(storage.join(out, LABELS)) as labels:
        labels.write((",".join(["filepath", *names]) + "\n").encode())
        for rows in _parts(run, recipe.decode.max_bytes):
            lines = io.StringIO()
            writer = csv.writer(lines, lineterminator="\n")
            for row, data in rows:
                if data is None:
                    lost += 1
                    continue
                name = f"{pictures:07d}.{ending_of(data, str(row['uri']))}"
                storage.write_bytes(storage.join(out, DATA, name), data)
                writer.writerow([name, *(written(row.get(name)) for name in CURATED_LEDGER.names)])
                pictures += 1
            labels.write(lines.getvalue().encode("utf-8", "replace"))
    return Copied(pictures, lost)


def _parts(run: Run, max_bytes: int) -> Iterator[Iterator[tuple[dict[str, object], bytes | None]]]:
    """Yield for each part of the pool the rows of the ledger that are no dead letters, with their bytes if any."""
    for pool, ledger in zip(run.parts("pool"), run.parts("ledger"), strict=False):  # the ledger ends with the seeds
        located = read_table(pool, [*LOCATOR, "sha256"])
        alive = pc.not_equal(read_table(ledger, ["status"])["status"], "dead")
        yield _read(run, located.filter(alive), read_table(ledger).filter(alive), max_bytes)


def _read(
    run: Run, located: pa.Table, ledger: pa.Table, max_bytes: int
) -> Iterator[tuple[dict[str, object], bytes | None]]:
    if not located.num_rows:
        return
    with Reader(run.sources["pool"][located["source"][0].as_py()], max_bytes) as reader:
        reader.expect(located["offset"].to_pylist())
        for place, row in zip(located.to_pylist(), ledger.to_pylist(), strict=True):
            try:
                data = reader.read(place["path"], place["offset"], place["size"])
                check_unchanged(data, place["sha256"])
                yield row, data
            except OSError:
                yield row, None
