"""The steps of a render's quads: which pairs of rendered rows are one, and the shards that hold them."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypedDict

import pyarrow as pa

from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run
from granary.curation.runs.splits import in_order
from granary.curation.runs.tables import read_groups, read_table
from granary.curation.store import schema
from granary.curation.store.language import PictureFile, QuadRow, quad_features
from granary.curation.store.sampling import hashed
from granary.synth.pug.plan.plans import row_id
from granary.synth.pug.planning import Planned, PlannedRow
from granary.synth.pug.steps import planned_of
from granary.synth.pug.texts.options import QuadKind, Quads
from granary.synth.pug.texts.quads import Captioned, captioned, partners_of
from granary.synth.pug.texts.templates import QUADS

ROWS = 100  # quads in a shard: 200 pictures are held while it is written
CHOSEN = pa.schema(
    [(name, pa.string()) for name in ("id", "kind", "exchange", "split", "caption_0", "caption_1")]
    + [(name, pa.int32()) for name in ("shard_0", "row_0", "shard_1", "row_1")]
)


class Chosen(TypedDict):
    """A quad before its pictures are read: its texts, and shard and row of each picture."""

    id: str
    kind: str
    exchange: str
    split: str
    caption_0: str
    caption_1: str
    shard_0: int
    row_0: int
    shard_1: int
    row_1: int


class QuadGroup(NamedTuple):
    """What the marker of `choose_quads` notes of a row group: the split of its quads, and how many there are."""

    split: str
    rows: int


class Place(NamedTuple):
    """Where the picture of a row is: its shard, its row there, and the number of the row in the plan."""

    shard: int
    row: int
    planned: int


@dataclasses.dataclass(frozen=True)
class ChooseQuads:
    """The job of `choose_quads`.

    Args:
        options: kinds, templates, and how many.
    """

    options: Quads


def choose_quads(run: Run, job: ChooseQuads, output: Output) -> None:
    """Write the quads that are drawn, those of a shard in a row group, see `QuadGroup`; both pictures are of a split.

    Which are drawn depends on the rows that have a picture and on the seed alone.
    """
    work = planned_of(run)
    seed, quads = work.recipe.seed, _quads(work, _places(run), job.options)
    drawn = heapq.nsmallest(
        job.options.count, quads, key=lambda quad: (hashed(f"{seed}/quad/{quad['id']}"), quad["id"])
    )
    for split in in_order(sorted({quad["split"] for quad in drawn})):
        some = [quad for quad in drawn if quad["split"] == split]
        for start in range(0, len(some), ROWS):
            group = some[start : start + ROWS]
            output.write(pa.Table.from_pylist(group, CHOSEN))
            output.notes.append(QuadGroup(split, len(group)))
    output.begin(CHOSEN)


def _places(run: Run) -> dict[str, Place]:
    """Return for every rendered row where its picture is."""
    places = {}
    for shard, url in enumerate(shards_of(run)):
        table = read_table(url, ["row_id", "image.path"])
        files = table["image"].combine_chunks().field("path").to_pylist()
        for row, (name, file) in enumerate(zip(table["row_id"].to_pylist(), files, strict=True)):
            places[name] = Place(shard, row, int(file.removesuffix(".png")))
    return places


def shards_of(run: Run) -> list[str]:
    """Return the URLs of the shards of pictures, in order."""
    return [run.path("dataset", "data", part.rsplit("/", 1)[-1]) for part in run.parts("shards")]


def _quads(work: Planned, places: Mapping[str, Place], options: Quads) -> Iterator[Chosen]:
    """Yield every quad of the rendered rows once."""
    for place in places.values():
        row = work.row(place.planned)
        facts = work.facts(row)
        if len(facts.things) < 2:
            continue
        for kind in options.kinds:
            template = options.templates.get(kind) or QUADS[kind]
            for other in _others(work, row, kind, places):
                texts = captioned(kind, (facts, work.facts(other)), template) if other.split == row.split else None
                if texts is not None:
                    yield _quad(kind, (row, other), texts, (place, places[other.id]))


def _others(work: Planned, row: PlannedRow, kind: QuadKind, places: Mapping[str, Place]) -> Iterator[PlannedRow]:
    """Yield the later rows that have a picture and differ from a row by an exchange, each once."""
    for name in dict.fromkeys(map(row_id, partners_of(row.values, kind))):
        place = places.get(name)
        if place is not None and place.planned > row.index:
            yield work.row(place.planned)


def _quad(kind: QuadKind, rows: tuple[PlannedRow, PlannedRow], texts: Captioned, places: tuple[Place, Place]) -> Chosen:
    name = "/".join([kind, *(row.id for row in rows)])
    return Chosen(
        id=hashlib.sha256(name.encode()).hexdigest()[:32],
        kind=kind,
        exchange=texts.exchange,
        split=rows[0].split,
        caption_0=texts.captions[0],
        caption_1=texts.captions[1],
        shard_0=places[0].shard,
        row_0=places[0].row,
        shard_1=places[1].shard,
        row_1=places[1].row,
    )


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
    chosen: list[Chosen] = read_table(run.parts("chosen-quads")[0], group=job.unit).to_pylist()
    pictures = _pictures(run, [(quad[f"shard_{n}"], quad[f"row_{n}"]) for quad in chosen for n in (0, 1)])  # type: ignore[literal-required]
    shard = RowGroups(output, schema.arrow_schema(quad_features()), job.row_group)
    for quad in chosen:
        images = [pictures[quad["shard_0"], quad["row_0"]], pictures[quad["shard_1"], quad["row_1"]]]
        row = QuadRow(
            id=quad["id"],
            image_0=images[0],
            image_1=images[1],
            caption_0=quad["caption_0"],
            caption_1=quad["caption_1"],
            tag=quad["kind"],
            secondary_tag=quad["exchange"],
            num_main_preds=1,
            collapsed_tag="Object" if quad["kind"] == "relation" else "Relation",
            split=quad["split"],
        )
        shard.add(row, sum(len(image["bytes"]) for image in images))
    shard.close()


def _pictures(run: Run, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], PictureFile]:
    """Return the pictures at some places, each shard read once and a row group of it held at a time."""
    wanted: dict[int, set[int]] = defaultdict(set)
    for shard, row in places:
        wanted[shard].add(row)
    urls, pictures = shards_of(run), {}
    for shard, rows in sorted(wanted.items()):
        start = 0
        for table in read_groups(urls[shard], ["image"]):
            for row in rows & set(range(start, start + len(table))):
                pictures[shard, row] = table["image"][row - start].as_py()
            start += len(table)
    return pictures
