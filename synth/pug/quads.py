"""Which pairs of rendered rows are quads: two pictures and two captions of the same words."""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from granary.curation.runs.chosen import image_shards, write_chosen
from granary.curation.runs.quads import CHOSEN, ROWS, Chosen
from granary.curation.runs.run import Output, Run
from granary.curation.runs.tables import read_table
from granary.curation.store.sampling import hashed
from granary.synth.pug.plan.plans import row_id
from granary.synth.pug.planning import Planned, PlannedRow
from granary.synth.pug.steps import planned_of
from granary.synth.pug.texts.options import QuadKind, Quads
from granary.synth.pug.texts.quads import Captioned, captioned, partners_of
from granary.synth.pug.texts.templates import QUADS


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
    """Choose the quads that are drawn among all that the rows with a picture have; both pictures are of one split.

    Which are drawn depends on the rows that have a picture and on the seed alone.
    """
    work = planned_of(run)
    seed, quads = work.recipe.seed, _quads(work, places_of(run), job.options)
    drawn = heapq.nsmallest(
        job.options.count, quads, key=lambda quad: (hashed(f"{seed}/quad/{quad['id']}"), quad["id"])
    )
    write_chosen(drawn, CHOSEN, ROWS, output)


def places_of(run: Run) -> dict[str, Place]:
    """Return for every rendered row where its picture is."""
    places = {}
    for shard, url in enumerate(image_shards(run)):
        table = read_table(url, ["row_id", "image.path"])
        files = table["image"].combine_chunks().field("path").to_pylist()
        for row, (name, file) in enumerate(zip(table["row_id"].to_pylist(), files, strict=True)):
            places[name] = Place(shard, row, int(file.removesuffix(".png")))
    return places


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
        tag=kind,
        secondary_tag=texts.exchange,
        num_main_preds=1,
        collapsed_tag="Object" if kind == "relation" else "Relation",
        split=rows[0].split,
        caption_0=texts.captions[0],
        caption_1=texts.captions[1],
        shard_0=places[0].shard,
        row_0=places[0].row,
        shard_1=places[1].shard,
        row_1=places[1].row,
    )
