"""List what the sources of a role hold and cut it into work units.

The listing is one Parquet file whose row group i is unit i: units name a row group, not thousands of paths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from granary.curation.runs.run import Output, Run, digest
from granary.curation.runs.tables import read_table
from granary.curation.sources import Piece, Source, list_pieces
from granary.curation.sources.contents import LeftOut
from granary.curation.store import storage

SCHEMA = pa.schema(
    [
        ("source", pa.int16()),
        ("path", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("size", pa.int64()),
        ("count", pa.int64()),
        ("stamp", pa.string()),
        ("sidecars", pa.list_(pa.string())),
        ("table", pa.string()),
        ("table_stamp", pa.string()),
    ]
)


# Fields of a source that decide how its files are read, apart from where they are.
READING = {"name", "kind", "labels", "image_column", "label_column", "caption_column", "url_column", "split"}


@dataclasses.dataclass(frozen=True)
class ListedUnit:
    """What one unit of a role reads.

    Args:
        role: for example "pool".
        unit: row group of the role's listing.
        source: how its files are read: the fields READING of their source.
        listing: digest of the pieces, which changes when a file does.
    """

    role: str
    unit: int
    source: Mapping[str, str | None]
    listing: str


class Listing(NamedTuple):
    """What the sources of a role hold.

    Args:
        units: of work.
        weights: number of items of each unit as far as it is known.
        left_out: for each source (what, why) -> how many files were passed over.
    """

    units: list[ListedUnit]
    weights: list[int]
    left_out: list[LeftOut]


def write_listing(run: Run, role: str, unit_rows: int) -> Listing:
    """List the sources of a role and cut what they hold into units of about `unit_rows` files, or of one tar."""
    units: list[ListedUnit] = []
    weights: list[int] = []
    left_out = [LeftOut() for _ in run.sources[role]]
    with storage.writing(run.path("sources", f"{role}.parquet")) as file:
        output = Output(file)
        for number, source in enumerate(run.sources[role]):
            for pieces in _groups(list_pieces(source, left_out[number]), unit_rows):
                rows = [{**dataclasses.asdict(piece), "source": number, "path": piece.path} for piece in pieces]
                output.write(pa.Table.from_pylist(rows, SCHEMA))
                stamp = digest([(str(row["path"]), row["start"], row["stop"], row["stamp"]) for row in rows])
                units.append(ListedUnit(role, len(units), source.model_dump(include=READING), stamp))
                weights.append(sum(piece.count or 1 for piece in pieces))
        if output.writer is None:
            output.write(SCHEMA.empty_table())
        output.finish("")
    return Listing(units, weights, left_out)


def _groups(pieces: Iterator[Piece], unit_rows: int) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    count = 0
    for piece in pieces:
        unknown = piece.count == 0
        if group and (unknown or count + piece.count > unit_rows):
            yield group
            group, count = [], 0
        group.append(piece)
        count += unit_rows if unknown else piece.count
    if group:
        yield group


def read_listing(run: Run, role: str, unit: int) -> tuple[Source, Sequence[Piece]]:
    """Return the source and the pieces of one unit."""
    rows = read_table(run.path("sources", f"{role}.parquet"), group=unit).to_pylist()
    number = rows[0]["source"]
    pieces = [Piece(**{**row, "sidecars": tuple(row["sidecars"])}) for row in rows if row.pop("source") is not None]
    return run.sources[role][number], pieces
