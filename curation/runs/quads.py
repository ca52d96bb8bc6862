"""Quads of a run: shards of two pictures and two captions each, whose pictures are rows of the run's shards."""

from __future__ import annotations

import itertools
from typing import TypedDict

import pyarrow as pa

from granary.curation.runs.chosen import WriteChosen, read_chosen, rows_at
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
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


def write_quads(run: Run, job: WriteChosen, output: Output) -> None:
    """Write one shard of quads with their pictures, see `granary.curation.store.language.QuadRow`."""
    chosen: list[Chosen] = read_chosen(run, STAGE, job)
    places = [[(quad["shard_0"], quad["row_0"]), (quad["shard_1"], quad["row_1"])] for quad in chosen]
    rows = rows_at(run, itertools.chain.from_iterable(places), ["image"])
    pictures: dict[tuple[int, int], PictureFile] = {place: row["image"] for place, row in rows.items()}
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
