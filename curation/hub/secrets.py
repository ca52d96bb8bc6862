"""Addresses in columns of Parquet files that would give away a password, a signature or a folder of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from granary.curation.store.addresses import json_without_secrets

NAMES = re.compile(r"(^|[._])(uri|url|path|metadata|reference|reason|message)s?($|[._])")  # of columns with addresses


def columns_with_secrets(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield (column, number of values) for each text column for addresses that holds one that is not to be sent.

    Args:
        file: a Parquet file; no other column of it is read.
    """
    parquet = pq.ParquetFile(file)
    leaves = (parquet.schema.column(number) for number in range(len(parquet.schema)))
    for path in [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING" and NAMES.search(leaf.path)]:
        batches = parquet.iter_batches(columns=[path], use_threads=False)
        count = sum(_secrets(text) for batch in batches for column in batch.columns for text in _texts(column))
        if count:
            yield path, count


def _texts(column: pa.Array) -> Iterator[pa.Array]:
    """Yield the texts of a column, however deep it is nested."""
    if pa.types.is_struct(column.type):
        for inner in column.flatten():
            yield from _texts(inner)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        yield from _texts(column.flatten())
    else:
        yield column.cast(pa.string())


def _secrets(texts: pa.Array) -> int:
    likely = texts.filter(pc.fill_null(pc.match_substring_regex(texts, r":(\\?/){2}"), False))
    return sum(json_without_secrets(text) != text for text in likely.to_pylist())
