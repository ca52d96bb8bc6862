"""Readers: each format of dense annotations to one form in memory.

A reader lists the records of a path (`records`: one per image, with its text where the format keeps many in one file)
and reads one (`parse`). Nothing here opens a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from granary.curation.dense.readers import coco, dci, jsonl, narratives
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


READERS: Mapping[Format, AnnotationFormat] = {"dci": dci, "coco": coco, "narratives": narratives, "jsonl": jsonl}
