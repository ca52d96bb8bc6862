"""Pictures that lie in a Parquet file of the annotations, as the Hub keeps whole datasets."""

from __future__ import annotations

import functools

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.dense.tree import Embedded, InvalidAnnotation
from granary.curation.sources import Source, files


def read_embedded(source: Source, place: Embedded, max_bytes: int) -> bytes:
    """Return the bytes of a picture.

    Args:
        source: of the annotations.
        place: of the picture in it.
        max_bytes: a larger one is refused.

    Raises:
        InvalidAnnotation: there are no bytes, or too many.
        OSError: the file cannot be read.
    """
    path = files.join(files.root(source.path), place.path)
    row = place.row
    for group, rows in enumerate(_sizes(path)):
        if row < rows:
            return _bytes_of(_column(path, group, place.column)[row].as_py(), place, max_bytes)
        row -= rows
    raise InvalidAnnotation("NoImage", f"{place.path} has no row {place.row}")


@functools.lru_cache(maxsize=1)
def _sizes(path: str) -> tuple[int, ...]:
    """Return the number of rows of each row group of a file."""
    with files.open_file(path) as file:
        metadata = pq.ParquetFile(file).metadata
        return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@functools.lru_cache(maxsize=2)
def _column(path: str, group: int, column: str) -> pa.ChunkedArray:
    """Return a column of a row group; that of either picture of an example is kept."""
    try:
        with files.open_file(path) as file:
            return pq.ParquetFile(file).read_row_group(group, [column], use_threads=False)[column]
    except (pa.ArrowException, KeyError) as error:
        raise InvalidAnnotation("NoImage", f"{path} cannot be read: {error}") from error


def _bytes_of(value: object, place: Embedded, max_bytes: int) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise InvalidAnnotation("NoImage", f"{place.column} of row {place.row} holds no bytes of a picture")
    if len(data) > max_bytes:
        raise InvalidAnnotation("TooManyBytes", f"the picture has {len(data)} bytes; the limit is {max_bytes}")
    return data
