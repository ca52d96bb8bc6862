"""The Parquet files of a run, read against the checksums of their pages."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.store import storage


class DamagedPart(UserError):
    """A file of a run is missing, or is not what was written.

    Args:
        url: of the file.
        cause: what its reader said, in one line.
    """

    def __init__(self, url: str, cause: str) -> None:
        self.url, self.cause = url, cause
        super().__init__(
            f"{url} cannot be read ({cause}); if it belongs to a run, `granary check RUN --repair` removes what is "
            "damaged there, and the run's command makes it again"
        )

    def __reduce__(self) -> tuple[type[DamagedPart], tuple[str, str]]:
        return type(self), (self.url, self.cause)


def read_table(url: str, columns: list[str] | None = None, group: int | None = None) -> pa.Table:
    """Read a Parquet file, or one row group of it; raises DamagedPart when it is missing or damaged."""
    with _parquet(url) as parquet:
        if group is None:
            return parquet.read(columns=columns, use_threads=False)
        return parquet.read_row_group(group, columns=columns, use_threads=False)


def read_groups(url: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Read a Parquet file one row group at a time; raises DamagedPart when it is missing or damaged."""
    with _parquet(url) as parquet:
        for group in range(parquet.num_row_groups):
            yield cast(pa.Table, parquet.read_row_group(group, columns=columns, use_threads=False))


def read_rows(url: str, start: int, stop: int) -> pa.Table:
    """Read the rows [start, stop) of a Parquet file, as far as it has them, and no row group without any of them.

    Raises:
        DamagedPart: the file is missing or damaged.
    """
    with _parquet(url) as parquet:
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        bounds = [0, *itertools.accumulate(counts)]
        groups = [group for group in range(len(counts)) if bounds[group] < stop and bounds[group + 1] > start]
        rows = parquet.read_row_groups(groups, use_threads=False)
        return rows.slice(start - bounds[groups[0]], stop - start) if groups else rows


@contextlib.contextmanager
def _parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file whose pages are compared with their checksums."""
    try:
        with storage.open_read(url) as file:
            yield pq.ParquetFile(file, page_checksum_verification=True)
    except pa.ArrowMemoryError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DamagedPart(url, " ".join(f"{type(error).__name__}: {error}".split())) from error
