"""Readers: each format of dense annotations to one form in memory.

A reader lists the records of a path (`records`: one per image, with its text where the format keeps many in one file)
and reads one (`parse`). Nothing here opens a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from granary.curation.dense.readers import coco, dci, gqa, jsonl, llava, narratives, pope, vqa, winoground
from granary.curation.dense.readers.record import Record
from granary.curation.dense.recipe import Format
from granary.curation.dense.tree import Annotation
from granary.curation.sources import Source


class AnnotationFormat(Protocol):
    """What the module of a format has."""

    def records(self, source: Source, max_bytes: int) -> Iterator[Record]:
        """Yield the annotated images of a source.

        Args:
            source: of the annotations, resolved.
            max_bytes: a longer record becomes one with an error, where records are lines.
        """
        ...

    def parse(self, data: bytes | str, name: str) -> Annotation:
        """Read the JSON of one record.

        Args:
            data: JSON; UTF-8 where it is bytes.
            name: of the record.

        Raises:
            InvalidAnnotation: nothing of it can be used.
        """
        ...


class ReadsTwoFiles(Protocol):
    """Lists the records of a source and a second file."""

    def __call__(self, source: Source, max_bytes: int, second: str, /) -> Iterator[Record]:
        """Yield the annotated images, see `AnnotationFormat.records`.

        Args:
            source: of the annotations, resolved.
            max_bytes: of a record.
            second: path of the other file; "" for none.
        """
        ...


READERS: Mapping[Format, AnnotationFormat] = {
    "dci": dci,
    "coco": coco,
    "narratives": narratives,
    "jsonl": jsonl,
    "vqa": vqa,
    "gqa": gqa,
    "pope": pope,
    "llava": llava,
    "winoground": winoground,
}
IN_PAIRS: Mapping[Format, ReadsTwoFiles] = {"coco": coco.records, "vqa": vqa.records}
"""The formats whose records may need a second file: of COCO the captions, of VQAv2 the answers."""
