"""Rows carried from ranges of a role to the buckets that work on them.

A unit of each range writes one file with a row group for each bucket, in order; a unit of each bucket reads its row
group of each file. So every row is read and written once, whatever the number of ranges, buckets and workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Block, Layout

MOST_RANGES, MOST_BUCKETS = 512, 4096  # a unit of a bucket opens a file of every range


def ranges(layout: Layout, rows: int) -> list[Block]:
    """Return blocks of parts of about so many rows, of more where there would be more than MOST_RANGES of them."""
    return layout.blocks(max(rows, -(-int(layout.starts[-1]) // MOST_RANGES)))


def bucket_count(rows: int, per_bucket: int) -> int:
    """Return how many buckets rows are carried to, so that each gets about `per_bucket` of them: 1 to MOST_BUCKETS."""
    return max(1, min(MOST_BUCKETS, -(-rows // per_bucket)))


def leading(keys: NDArray[np.uint64], buckets: int) -> NDArray[np.int64]:
    """Return the bucket of each key, uniform over 64 bits, by its leading bits: (n,) int64, monotone in the key."""
    return ((keys >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def carry(table: pa.Table, bucket: NDArray[np.int64], buckets: int, output: Output) -> None:
    """Write the rows of a table by bucket, a row group each, empty or not; rows of a bucket keep their order.

    Args:
        table: n rows.
        bucket: (n,) int64 in [0, buckets), of each row.
        buckets: how many there are.
        output: of the unit.
    """
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1))
    sorted_rows = table.take(pa.array(order))
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        output.write(sorted_rows.slice(start, stop - start))


def carried(run: Run, stage: str, bucket: int) -> pa.Table:
    """Return the rows of a bucket, by range; one at least was carried by `carry`."""
    return pa.concat_tables(_groups(run, stage, bucket))


def _groups(run: Run, stage: str, bucket: int) -> Iterator[pa.Table]:
    for url in run.parts(stage):
        yield read_table(url, group=bucket)
