"""Config `default`: each annotated image with its masks and windows, original bytes and all."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from granary.curation.dense.assemble import assemble, image_row
from granary.curation.dense.packing import Counter
from granary.curation.dense.readers import READERS
from granary.curation.dense.schema import image_features
from granary.curation.dense.steps.records import RecordReader, read_records
from granary.curation.dense.texts import cleaned
from granary.curation.dense.tree import UNUSABLE, Annotation, InvalidAnnotation, Problem
from granary.curation.images.decode import DecodeError, DecodeLimits
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Marker, Output, Run
from granary.curation.sources import Source, failure, files
from granary.curation.steps.embed import FEWEST_LOST, OUTAGES, TooManyUnreadable
from granary.curation.store import schema, storage

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")  # some annotations name an image without its ending


def write_shard(run: Run, arguments: Mapping[str, Any], output: Output) -> None:
    """Pack the records of one unit; what is lost is noted with its reason, and the rest goes on.

    Raises:
        TooManyUnreadable: connections or permissions failed for more than `max_unreadable` of the pictures.
    """
    records = read_records(run, arguments["unit"])
    source, parse = run.sources["annotations"][0], READERS[arguments["format"]].parse
    limits = DecodeLimits(**arguments["decode"])
    counter = Counter(arguments["tokenizer"], arguments["budget"])
    rows = RowGroups(output, schema.arrow_schema(image_features()), arguments["row_group"])
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
            row = image_row(found, counter, arguments["grow"], arguments["masks"])
            count(output, row, len(annotation.masks), counter.budget)
            output.counters["given"] += bool(annotation.summaries or annotation.negatives)
            origin = {"name": "images", "uri": f"images/{annotation.image}"}
            rows.add({**row, "image": {"bytes": picture, "path": name}, "source": origin}, len(picture))
    rows.close()
    if outages.total() >= FEWEST_LOST and outages.total() > arguments["max_unreadable"] * len(records):
        raise TooManyUnreadable(
            f"{outages.total()} of {len(records)} pictures could not be read, more than max_unreadable "
            f"{arguments['max_unreadable']}"
        )


def _annotation(parse: Any, reader: RecordReader, record: Mapping[str, Any]) -> Annotation:
    if record["error"]:
        raise InvalidAnnotation(record["error"], record["message"])
    annotation: Annotation = parse(reader.read(record), record["name"])
    return _in_split(annotation, record["split"])


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
