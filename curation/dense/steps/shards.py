"""Config `default`: each annotated image with its masks and windows, original bytes and all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from granary.curation.dense.assemble import Assembled, assemble, image_row
from granary.curation.dense.packing import Counter
from granary.curation.dense.recipe import Budget, Format, MaskForm
from granary.curation.dense.schema import ASKED, DescribedImage, ImageFile, ImageRow, image_features
from granary.curation.dense.steps.embedded import read_embedded
from granary.curation.dense.steps.notes import note
from granary.curation.dense.steps.records import AnnotationReader, RecordRow, read_records
from granary.curation.dense.tree import UNUSABLE, Annotation, InvalidAnnotation, Problem
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.row_groups import RowGroups
from granary.curation.runs.run import Output, Run, undigested
from granary.curation.sources import Source, failure, files
from granary.curation.steps.unreadable import OUTAGES, check_lost
from granary.curation.store import schema

ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")  # some annotations name an image without its ending


@dataclasses.dataclass(frozen=True)
class PackImages:
    """The job of `write_shard`.

    Args:
        unit: row group of the records.
        records: digest of the records.
        format: of the annotations.
        budget: of the windows.
        tokenizer: digest of the budget's tokenizer; "" where words are counted.
        decode: limits on annotations and pictures.
        grow: share by which the boxes of masks grow.
        masks: how their pixels are stored.
        row_group: most images in a row group.
        max_unreadable: share of the unit for which connections or permissions may fail, see `check_lost`.
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


@dataclasses.dataclass(frozen=True)
class OpenedImage:
    """What the record of an image led to.

    Args:
        record: as listed.
        result: the annotation with its masks, or why annotation or picture cannot be used.
        path, picture: of the picture's file: its path below the folder of images, and its bytes.
    """

    record: RecordRow
    result: Assembled | Problem
    path: str = ""
    picture: bytes = b""

    @property
    def lost(self) -> bool:
        """Whether a connection or a permission failed, which says nothing about what the files hold."""
        return self.reason in OUTAGES

    @property
    def reason(self) -> str:
        """Class of the error; "" where there is none."""
        return self.result.error if isinstance(self.result, Problem) else ""


def write_shard(run: Run, job: PackImages, output: Output) -> None:
    """Pack the records of one unit; what is lost is noted with its reason, and the rest goes on.

    Raises:
        TooManyUnreadable: connections or permissions failed for too many of the files, see `check_lost`.
    """
    counter = Counter(job.budget.tokenizer, job.budget.tokens)
    groups = RowGroups(output, schema.arrow_schema(image_features(job.format)), job.row_group)
    for image in check_lost(_opened(run, job), job.max_unreadable, output.counters):
        output.counters["files"] += 1
        row: Mapping[str, object] | None = _packed(image, job, counter, output)
        if row is not None:
            groups.add(row, len(image.picture))
    groups.close()


def _opened(run: Run, job: PackImages) -> Iterator[OpenedImage]:
    """Yield what each record leads to; what cannot be used carries its problem."""
    limits = job.decode
    with AnnotationReader(run.sources["annotations"][0], job.format, limits.max_bytes) as reader:
        for record in read_records(run, job.unit):
            try:
                annotation = reader.read(record)
                path, picture = _picture_of(run, annotation, limits.max_bytes)
                assembled = assemble(annotation, picture, limits)
            except (InvalidAnnotation, DecodeError) as error:
                yield OpenedImage(record, Problem("", error.kind, str(error)))
            except OSError as error:
                yield OpenedImage(record, Problem("", *failure(error)))
            else:
                yield OpenedImage(record, assembled, path, picture)


def _picture_of(run: Run, annotation: Annotation, max_bytes: int) -> tuple[str, bytes]:
    """Return the path and the bytes of the picture of an annotation; raises OSError where it is not there."""
    if annotation.embedded:
        return annotation.image, read_embedded(run.sources["annotations"][0], annotation.embedded, max_bytes)
    return read_picture(run.sources["images"][0], (annotation.image, *annotation.also), max_bytes)


def _packed(image: OpenedImage, job: PackImages, counter: Counter, output: Output) -> Mapping[str, object] | None:
    """Return the row of an image, counted, or None where there is none, and note what was lost of it."""
    assembled, name = image.result, image.record["name"]
    if isinstance(assembled, Problem):
        note(output, name, "dead", assembled)
        return None
    for problem in assembled.problems:
        note(output, name, "part", problem)
    annotation = assembled.annotation
    column = ASKED.get(job.format)
    asked: dict[str, Sequence[object]] = {column: getattr(annotation, column)} if column else {}
    if not assembled.description and not any(asked.values()):
        note(output, name, "dropped", Problem("", "EmptyText", "nothing is said of the image"))
        return None
    output.counters.update({name: len(rows) for name, rows in asked.items()})
    row = image_row(assembled, counter, job.grow, job.masks)
    _count(output, row, len(annotation.masks), counter.budget)
    output.counters["given"] += bool(annotation.summaries or annotation.negatives)
    file: ImageFile = {"bytes": image.picture, "path": image.path.rsplit("/", 1)[-1]}
    whole: ImageRow = {**row, "image": file, "source": {"name": "images", "uri": f"images/{image.path}"}}
    return {**whole, **asked}


def read_picture(source: Source, names: Sequence[str], max_bytes: int) -> tuple[str, bytes]:
    """Return the path and the bytes of a picture an annotation names; its ending may be left out.

    Args:
        source: the folder of the images.
        names: that the picture may have, relative to the folder; the first that is there counts.
        max_bytes: larger files are not read.

    Raises:
        OSError: there is no such picture, or its path leads out of the folder.
    """
    remote = next((name for name in names if "://" in name), None)
    if remote is not None:
        raise files.UnsafePath(f"images are read from the folder of images, not from {remote}")
    for name in names:
        for ending in ENDINGS if not os.path.splitext(name)[1] else ENDINGS[:1]:
            with contextlib.suppress(FileNotFoundError):
                return name + ending, files.read_reference(source.path, source.path, name + ending, max_bytes)
    raise FileNotFoundError(f"there is no image {' or '.join(names)}")


def _count(output: Output, row: DescribedImage, read: int, budget: int) -> None:
    """Count what a row holds.

    Args:
        read: masks of its annotation, those that were lost too.
        budget: of a window.
    """
    masks = row["masks"]
    output.counters.update(
        {
            "kept": 1,
            "masks": len(masks),
            "masks lost": read - len(masks),
            "masks unusable": sum(mask["quality"] >= UNUSABLE for mask in masks),
            "windows": len(row["texts"]),
            "windows over the budget": sum(text["tokens"] > budget for text in row["texts"]),
        }
    )
