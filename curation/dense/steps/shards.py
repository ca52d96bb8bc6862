"""Config `default`: each annotated image with its masks and windows, original bytes and all."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from granary.curation.dense.assemble import assemble, image_row
from granary.curation.dense.packing import Counter
from granary.curation.dense.readers import READERS
from granary.curation.dense.recipe import Budget, Format, MaskForm
from granary.curation.dense.schema import image_features
from granary.curation.dense.steps.records import RecordReader, RecordRow, read_records
from granary.curation.dense.texts import cleaned
from granary.curation.dense.tree import UNUSABLE, Annotation, InvalidAnnotation, Problem
from granary.curation.images.decode import DecodeError, DecodeLimits
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Marker, Output, Run, undigested
from granary.curation.sources import Source, failure, files
from granary.curation.steps.unreadable import FEWEST_LOST, OUTAGES, TooManyUnreadable
from granary.curation.store import schema, storage

Parse = Callable[[bytes | str, str], Annotation]
ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")  # some annotations name an image without its ending


@dataclasses.dataclass(frozen=True)
class PackShard:
    """Which records are packed, and how.

    Args:
        unit: number of the records' unit.
        records: digest of the unit's records.
        format: of the annotations.
        budget: of the texts.
        tokenizer: fingerprint of the budget's tokenizer; "" where words are counted.
        decode: limits on what is decoded.
        grow: share of its width and height a mask's box grows by at each side.
        masks: how masks are stored.
        row_group: most samples in a row group.
        max_unreadable: share of the pictures that may be lost to connections or permissions.
    """

    unit: int
    records: str
    format: Format
    budget: Budget
    tokenizer: str
    decode: DecodeLimits
    grow: float
    masks: MaskForm
    row_group: int
    max_unreadable: float = undigested(1.0)


def write_shard(run: Run, job: PackShard, output: Output) -> None:
    """Pack the records of one unit; what is lost is noted with its reason, and the rest goes on.

    Raises:
        TooManyUnreadable: connections or permissions failed for more than `max_unreadable` of the pictures.
    """
    records = read_records(run, job.unit)
    source, parse = run.sources["annotations"][0], READERS[job.format].parse
    limits, counter = job.decode, Counter(job.budget.tokenizer, job.budget.tokens)
    rows = RowGroups(output, schema.arrow_schema(image_features()), job.row_group)
    outages: collections.Counter[str] = collections.Counter()
    with RecordReader(source, limits.max_bytes) as reader:
        for record in records:
            output.counters["files"] += 1
            try:
                annotation = _annotation(parse, reader, record)
                name, picture = read_picture(run.sources["images"][0], annotation.image, limits.max_bytes)
                found = assemble(annotation, picture, limits)
            except (InvalidAnnotation, DecodeError) as error:
                note(output, record["name"], "dead", Problem("", error.kind, str(error)))
                continue
            except OSError as error:
                lost = Problem("", *failure(error))
                outages[lost.error] += lost.error in OUTAGES
                note(output, record["name"], "dead", lost)
                continue
            for problem in found.problems:
                note(output, record["name"], "part", problem)
            if not found.description:
                note(output, record["name"], "dropped", Problem("", "EmptyText", "nothing is said of the image"))
                continue
            row = image_row(found, counter, job.grow, job.masks)
            count(output, row, len(annotation.masks), counter.budget)
            output.counters["given"] += bool(annotation.summaries or annotation.negatives)
            origin = {"name": "images", "uri": f"images/{annotation.image}"}
            rows.add({**row, "image": {"bytes": picture, "path": name}, "source": origin}, len(picture))
    rows.close()
    if outages.total() >= FEWEST_LOST and outages.total() > job.max_unreadable * len(records):
        raise TooManyUnreadable(
            f"{outages.total()} of {len(records)} pictures could not be read, more than max_unreadable "
            f"{job.max_unreadable}"
        )


def _annotation(parse: Parse, reader: RecordReader, record: RecordRow) -> Annotation:
    if record["error"]:
        raise InvalidAnnotation(record["error"], record["message"] or "")
    return _in_split(parse(reader.read(record), record["name"]), record["split"])


def _in_split(annotation: Annotation, split: str) -> Annotation:
    return dataclasses.replace(annotation, split=split) if split else annotation


def read_picture(source: Source, name: str, max_bytes: int) -> tuple[str, bytes]:
    """Return the file name and the bytes of a picture an annotation names; its ending may be left out.

    Raises:
        OSError: there is no such picture, or its path leads out of the folder.
    """
    if "://" in name:
        raise files.UnsafePath(f"images are read from the folder of images, not from {name}")
    endings = ENDINGS if not os.path.splitext(name)[1] else ENDINGS[:1]
    for ending in endings:
        try:
            data = files.read_reference(source.path, source.path, name + ending, max_bytes)
            return (name + ending).rsplit("/", 1)[-1], data
        except FileNotFoundError:
            continue
    raise FileNotFoundError(f"there is no image {name}")


def note(output: Output, name: str, status: str, problem: Problem) -> None:
    """Note what was lost of an annotation. status: dead or dropped (all of it), or part."""
    output.counters[status] += status != "part"
    output.counters["parts lost"] += status == "part"
    output.notes.append([name, status, cleaned(problem.part), problem.error, cleaned(problem.message)])


def count(output: Output, row: Mapping[str, Any], read: int, budget: int) -> None:
    """Count what a row holds."""
    kept = row["masks"]
    output.counters.update(
        {
            "kept": 1,
            "masks": len(kept),
            "masks lost": read - len(kept),
            "masks unusable": sum(mask["quality"] >= UNUSABLE for mask in kept),
            "windows": len(row["texts"]),
            "windows over the budget": sum(text["tokens"] > budget for text in row["texts"]),
        }
    )


def notes_of(run: Run, stage: str) -> Iterator[list[list[Any]]]:
    """Yield the notes of each unit of a finished stage, one unit at a time."""
    for part in run.parts(stage):
        yield list(Marker.parse(storage.read_bytes(part.removesuffix(".parquet") + ".done")).notes)


def shard_paths(run: Run, stage: str, config: str) -> list[str]:
    """Return the URLs of the shards that a stage wrote, in order."""
    return [run.path("dataset", config, part.rsplit("/", 1)[-1]) for part in run.parts(stage)]
