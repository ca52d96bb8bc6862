"""The row groups of a shard: as many samples as a reader should hold at a time, fewer where pictures are large."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from granary.curation.runs.run import Output

GROUP_BYTES = 128 << 20  # a row group is cut short when its pictures are large


class RowGroups:
    """Writes samples one by one; the bounds of the groups depend on the samples alone.

    Args:
        output: the shard.
        schema: of the samples, with the metadata that types their images.
        rows: most samples in a row group.
    """

    def __init__(self, output: Output, schema: pa.Schema, rows: int) -> None:
        self.output, self.schema, self.rows = output, schema, rows
        self._pending: list[Mapping[str, object]] = []
        self._size = 0

    def add(self, sample: Mapping[str, object], size: int) -> None:
        """Add a sample.

        Args:
            sample: value of each column of the schema.
            size: bytes of its pictures; a group that reaches GROUP_BYTES is written.
        """
        self._pending.append(sample)
        self._size += size
        if len(self._pending) == self.rows or self._size >= GROUP_BYTES:
            self._write()

    def close(self) -> None:
        """Write what is left; a shard without samples gets no row group, since `datasets` cannot load an empty one."""
        if self._pending:
            self._write()
        self.output.begin(self.schema, "snappy")

    def _write(self) -> None:
        self.output.write(pa.Table.from_pylist(self._pending, self.schema), compression="snappy")
        self._pending, self._size = [], 0
