"""The real pictures of a sampling run: the cell each belongs to, and their pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from PIL import Image

from granary.curation.images.decode import DecodeError, decode
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.curation.runs.vectors import Layout
from granary.curation.sources import Reader
from granary.curation.steps.unreadable import check_unchanged
from granary.synth.feedback.plan import Cell, class_of, group_of
from granary.synth.feedback.recipe import Groups

LOCATOR = ["source", "path", "offset", "size", "sha256"]


class RealRow(TypedDict):
    """What the stage `data` says of a picture, as far as its cell depends on it."""

    uri: str
    id: str
    label: str | None
    source: int
    metadata: str | None
    status: str


@dataclass(frozen=True)
class RealPicture:
    """A readable picture of the data.

    Args:
        index: global, in the stage `data`.
        row: what is known of it.
        cell: where it belongs, or why it belongs nowhere: "held out", "no label" or "no group".
    """

    index: int
    row: RealRow
    cell: Cell | str


def real_pictures(run: Run, groups: Groups, part: int | None = None) -> Iterator[RealPicture]:
    """Yield every readable picture, or those of one part."""
    held = {identity for url in run.parts("holdout") for identity in read_table(url, ["id"])["id"].to_pylist()}
    layout = Layout.of(run, "data")
    first, last = (0, len(layout.parts)) if part is None else (part, part + 1)
    for start, table in layout.read(first, last, list(RealRow.__annotations__)):
        for offset, row in enumerate(table.to_pylist()):
            if row["status"] == "ok":
                name = run.sources["data"][row["source"]].name
                yield RealPicture(start + offset, row, _cell(row, name, groups, held))


def _cell(row: RealRow, source: str, groups: Groups, held: set[str]) -> Cell | str:
    label = class_of(groups, row["uri"], row["label"])
    group = group_of(groups, row["uri"], source, row["metadata"])
    if row["id"] in held:
        return "held out"
    if label is None:
        return "no label"
    return "no group" if group is None else Cell(label, group)


def read_pictures(
    run: Run, indices: Sequence[int], limits: DecodeLimits
) -> Iterator[Image.Image | DecodeError | OSError]:
    """Yield real pictures by their global index in the data, or the error that kept one from being read."""
    rows = Layout.of(run, "data").take(np.array(indices, np.int64), LOCATOR).to_pylist() if len(indices) else []
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(source, limits.max_bytes)) for source in run.sources["data"]]
        for row in rows:
            try:
                data = readers[row["source"]].read(row["path"], row["offset"], row["size"])
                check_unchanged(data, row["sha256"])
                yield decode(data, limits).image
            except (DecodeError, OSError) as error:
                yield error
