"""Quads of a run: shards of two pictures and two captions each, whose pictures are rows of the run's shards."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

import pyarrow as pa

from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
from granary.curation.runs.splits import in_order
from granary.curation.runs.tables import read_groups, read_table
from granary.curation.store import schema
from granary.curation.store.language import PictureFile, QuadRow, quad_features

ROWS = 100  # quads in a shard: 200 pictures are held while it is written
STAGE = "chosen-quads"
TEXTS = ("id", "split", "caption_0", "caption_1", "tag", "secondary_tag", "collapsed_tag")
CHOSEN = pa.schema(
    [(name, pa.string()) for name in TEXTS]
    + [(name, pa.int32()) for name in ("num_main_preds", "shard_0", "row_0", "shard_1", "row_1")]
)


class Chosen(TypedDict):
    """A quad before its pictures are read: all of `QuadRow` but these, and shard and row of each."""

    id: str
    split: str
    caption_0: str
    caption_1: str
    tag: str
    secondary_tag: str
    num_main_preds: int
    collapsed_tag: str
    shard_0: int
    row_0: int
    shard_1: int
    row_1: int


class QuadGroup(NamedTuple):
    """What the marker of the stage of `write_chosen` notes of a row group: the split of its quads, and their number."""

    split: str
    rows: int


def write_chosen(quads: Sequence[Chosen], output: Output) -> None:
    """Write quads before their pictures are read, those of a shard in a row group, see `QuadGroup`."""
    for split in in_order(sorted({quad["split"] for quad in quads})):
        some = [quad for quad in quads if quad["split"] == split]
        for start in range(0, len(some), ROWS):
            group = some[start : start + ROWS]
            output.write(pa.Table.from_pylist(group, CHOSEN))
            output.notes.append(QuadGroup(split, len(group)))
    output.begin(CHOSEN)


def image_shards(run: Run) -> list[str]:
    """Return the URLs of the shards of config `default`, in order; that of a unit has its number."""
    return [run.path("dataset", "data", part.rsplit("/", 1)[-1]) for part in run.parts("shards")]


@dataclasses.dataclass(frozen=True)
class WriteQuads:
    """The job of `write_quads`.

    Args:
        unit: row group of the quads that were chosen.
        row_group: quads in a row group of the shard.
    """

    unit: int
    row_group: int


def write_quads(run: Run, job: WriteQuads, output: Output) -> None:
    """Write one shard of quads with their pictures, see `granary.curation.store.language.QuadRow`."""
    chosen: list[Chosen] = read_table(run.parts(STAGE)[0], group=job.unit).to_pylist()
    places = [[(quad["shard_0"], quad["row_0"]), (quad["shard_1"], quad["row_1"])] for quad in chosen]
    pictures = pictures_at(run, [place for pair in places for place in pair])
    shard = RowGroups(output, schema.arrow_schema(quad_features()), job.row_group)
    for quad, (first, second) in zip(chosen, places, strict=True):
        row = QuadRow(
            id=quad["id"],
            image_0=pictures[first],
            image_1=pictures[second],
            caption_0=quad["caption_0"],
            caption_1=quad["caption_1"],
            tag=quad["tag"],
            secondary_tag=quad["secondary_tag"],
            num_main_preds=quad["num_main_preds"],
            collapsed_tag=quad["collapsed_tag"],
            split=quad["split"],
        )
        shard.add(row, len(pictures[first]["bytes"]) + len(pictures[second]["bytes"]))
    shard.close()


def pictures_at(run: Run, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], PictureFile]:
    """Return the pictures at some places, each shard read once and a row group of it held at a time."""
    wanted: dict[int, set[int]] = defaultdict(set)
    for shard, row in places:
        wanted[shard].add(row)
    urls, pictures = image_shards(run), {}
    for shard, rows in sorted(wanted.items()):
        start = 0
        for table in read_groups(urls[shard], ["image"]):
            for row in rows & set(range(start, start + len(table))):
                pictures[shard, row] = table["image"][row - start].as_py()
            start += len(table)
    return pictures
