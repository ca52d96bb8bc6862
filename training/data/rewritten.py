"""A dataset written again with another column: what was found out about every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from granary.curation.errors import UserError
from granary.curation.runs.tables import read_table
from granary.curation.sources.contents import split_of
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.splits import named_splits


def check_new(out: str, dataset: shards.Dataset, column: str) -> None:
    """Raise UserError where something is in the run directory to write, or the dataset has the column already."""
    if storage.names(out):
        raise UserError(f"out: {out} is not right: there is something in it; give a new directory")
    if column in dataset.columns:
        raise UserError(f"data: {dataset.path} has a column {column} already; give the run it was made of")


def write_again(dataset: shards.Dataset, out: str, column: str, values: Callable[[shards.RowGroup], pa.Array]) -> None:
    """Write the shards of a dataset with a further column of texts, row group by row group.

    Args:
        dataset: opened without a split.
        out: the run directory to write.
        column: its name.
        values: of the rows of a group.
    """
    for url, name in _names(list(dict.fromkeys(group.url for group in dataset.groups))).items():
        target = storage.join(out, "dataset", "data", name)
        sink = pa.BufferOutputStream()
        writer: pq.ParquetWriter | None = None
        for group in (group for group in dataset.groups if group.url == url):
            table = read_table(group.url, None, group.number).append_column(column, values(group).cast(pa.string()))
            table = table.replace_schema_metadata(_with_feature(table.schema.metadata, column))
            writer = writer or pq.ParquetWriter(sink, table.schema, write_page_checksum=True)
            writer.write_table(table, row_group_size=max(1, len(table)))
        if writer is not None:
            writer.close()
            storage.write_bytes(target, sink.getvalue().to_pybytes())


def _names(urls: Sequence[str]) -> dict[str, str]:
    """Return the name of each shard in the one folder that is written: its own, after that of its folder where needed.

    Two folders may have shards of one name, and a folder may be what says the split.
    """
    names = {url: url.rsplit("/", 1)[-1] for url in urls}
    splits = named_splits(urls) or {}
    told = all(split_of(names[url]) == split for url, split in splits.items())
    if told and len(set(names.values())) == len(urls):
        return names
    return {url: "-".join(url.rsplit("/", 2)[-2:]) for url in urls}


def _with_feature(metadata: Mapping[bytes, bytes] | None, column: str) -> dict[bytes, bytes]:
    """Return the metadata of a shard with the column among the features of `datasets`, where they are said."""
    said = dict(metadata or {})
    if b"huggingface" in said:
        tree = json.loads(said[b"huggingface"])
        tree["info"]["features"][column] = {"dtype": "string", "_type": "Value"}
        said[b"huggingface"] = json.dumps(tree).encode()
    return said
