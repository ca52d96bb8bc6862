"""The quads of Winoground: which rows of the shards are the two pictures of an example."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from granary.curation.dense import fields
from granary.curation.dense.readers.winoground import TAGS, example_of, is_first
from granary.curation.dense.steps.records import RecordRow, read_records
from granary.curation.runs.chosen import image_shards, write_chosen
from granary.curation.runs.quads import CHOSEN, ROWS, Chosen
from granary.curation.runs.run import Output, Run
from granary.curation.runs.splits import TRAIN
from granary.curation.runs.tables import read_table

Place = tuple[int, int]  # shard, and row in it


@dataclasses.dataclass(frozen=True)
class ChooseExamples:
    """The job of `choose_examples`.

    Args:
        units: how many row groups the records have.
    """

    units: int


def choose_examples(run: Run, job: ChooseExamples, output: Output) -> None:
    """Write a quad for each example both of whose pictures were packed; the others are counted."""
    places = {
        name: (shard, row)
        for shard, url in enumerate(image_shards(run))
        for row, name in enumerate(read_table(url, ["file"])["file"].to_pylist())
    }
    records = (record for unit in range(job.units) for record in read_records(run, unit) if is_first(record["text"]))
    chosen = [quad for record in records if (quad := _quad(record, places, output))]
    write_chosen(chosen, CHOSEN, ROWS, output)


def _quad(record: RecordRow, places: Mapping[str, Place], output: Output) -> Chosen | None:
    """Return the quad of an example; None where a picture of it was lost."""
    name = record["name"].rpartition("/")[0]
    one, other = places.get(f"{name}/0"), places.get(f"{name}/1")
    if one is None or other is None:
        output.counters["quads lost"] += 1
        return None
    example, identity = example_of(record["text"])
    tags = {tag: fields.text(example, tag, []) for tag in TAGS}
    return Chosen(
        id=identity or name,
        split=record["split"] or TRAIN,
        caption_0=fields.text(example, "caption_0", []),
        caption_1=fields.text(example, "caption_1", []),
        tag=tags["tag"],
        secondary_tag=tags["secondary_tag"],
        num_main_preds=_number(example.get("num_main_preds")),
        collapsed_tag=tags["collapsed_tag"],
        shard_0=one[0],
        row_0=one[1],
        shard_1=other[0],
        row_1=other[1],
    )


def _number(value: object) -> int:
    """Return a whole number; 0 where there is none."""
    try:
        return fields.integer(value)
    except (ValueError, TypeError):
        return 0
