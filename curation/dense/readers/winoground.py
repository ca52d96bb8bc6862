"""Winoground: examples of two pictures and two captions of the same words, as JSON Lines or as Parquet.

Thrush et al. 2022, arXiv 2204.03162; the columns are those of the dataset facebook/winoground on the Hub: `id`,
`image_0`, `image_1`, `caption_0`, `caption_1`, `tag`, `secondary_tag`, `num_main_preds`, `collapsed_tag`. In
examples.jsonl a picture is a name such as ex_0_img_0, of a file in the folder of the images; in Parquet it is bytes
and a path. Each example gives two records, a picture each: its caption describes it, and that of the other picture is
its negative, `swaps`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from granary.curation.dense import fields
from granary.curation.dense.fields import JsonObject
from granary.curation.dense.readers import gathered, lines
from granary.curation.dense.readers.record import Record
from granary.curation.dense.tree import Annotation, Embedded, InvalidAnnotation, Problem
from granary.curation.errors import UserError
from granary.curation.runs.tables import DamagedPart, read_groups
from granary.curation.sources import Source, files, listing

TAGS = ("tag", "secondary_tag", "collapsed_tag")
KNOWN = frozenset({"id", "image_0", "image_1", "caption_0", "caption_1", "num_main_preds", *TAGS})
PARQUET = (".parquet",)


def records(source: Source, max_bytes: int) -> Iterator[Record]:
    """Yield two records for each example, EXAMPLE/0 and EXAMPLE/1, each with the example as JSON.

    Args:
        source: a file or a folder of files, of lines or Parquet.
        max_bytes: a longer line is lost; and Parquet files are not limited.

    Raises:
        UserError: a Parquet file cannot be read, or is not Winoground's.
    """
    if gathered.holds(source, PARQUET):
        for file in listing.shards(source.path, PARQUET):
            yield from _of_table(source, file.path)
        return
    for line in lines.records(source, max_bytes):
        for number in (0, 1):
            text = json.dumps({"number": number, "example": line.text})
            yield Record(f"{line.name}/{number}", text="" if line.error else text, error=line.error)


def _of_table(source: Source, path: str) -> Iterator[Record]:
    """Yield the records of a Parquet file; pictures are not read yet."""
    place, row = files.join(files.root(source.path), path), 0
    try:
        for table in read_groups(place, [name for name in _columns(place) if not name.startswith("image_")]):
            for example in table.to_pylist():
                for number in (0, 1):
                    content = {"number": number, "example": json.dumps(example, default=str), "at": [path, row]}
                    yield Record(f"{path}:{row}/{number}", text=json.dumps(content))
                row += 1
    except DamagedPart as error:
        raise UserError(f"annotations: {place} cannot be read ({error.cause}); give Winoground's Parquet") from error


def _columns(place: str) -> list[str]:
    """Return the columns of a Parquet file; raises UserError where those of Winoground are missing."""
    import pyarrow.parquet as pq

    with files.open_file(place) as file:
        names: list[str] = pq.ParquetFile(file).schema_arrow.names
    for name in ("image_0", "image_1", "caption_0", "caption_1"):
        if name not in names:
            raise UserError(f"annotations: {place} has no column {name!r}; give Winoground's Parquet")
    return names


def parse(data: bytes | str, name: str) -> Annotation:
    """Read one record that `records` made; raises InvalidAnnotation."""
    problems: list[Problem] = []
    record = fields.load(data, [])
    example = fields.load(str(record["example"]), problems)
    number = 0 if record["number"] == 0 else 1
    captions = [fields.text(example, f"caption_{n}", problems) for n in (0, 1)]
    if not all(captions) or captions[0] == captions[1]:
        raise InvalidAnnotation("InvalidQuad", "caption_0 and caption_1 are not two different texts")
    problems += gathered.unknown([example], KNOWN, "example")
    embedded = _embedded(record.get("at"), number)
    return Annotation(
        file=name,
        image=embedded.name if embedded else fields.image_name(example, f"image_{number}"),
        embedded=embedded,
        short_caption=captions[number],
        summaries={"base": [captions[number]]},
        negatives={"base": {"swaps": [captions[1 - number]]}},
        problems=problems if number == 0 else [],  # the second record has the same
    )


def _embedded(at: object, number: int) -> Embedded | None:
    """Return where the picture of a record lies in a Parquet file; None where it is a file of its own."""
    if not isinstance(at, list):
        return None
    path, row = at
    return Embedded(str(path), int(row), f"image_{number}")


def example_of(text: str) -> tuple[JsonObject, str]:
    """Return the example of a record, and its id.

    Args:
        text: JSON that `records` made.
    """
    example = fields.load(str(fields.load(text, [])["example"]), [])
    return example, gathered.identity(example.get("id"))


def is_first(text: str) -> bool:
    """Say whether a record is of the first picture of its example."""
    record = json.loads(text) if text else {}
    return isinstance(record, Mapping) and record.get("number") == 0
