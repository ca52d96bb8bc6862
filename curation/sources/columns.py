"""What the columns of a table row (Parquet, `datasets`, lists of URLs, JSON of a shard) mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import unquote

from granary.curation.errors import UserError
from granary.curation.sources.model import Source, field_name, plain

# Of the tables and shards of the Hub, img2dataset and captioning corpora; the first that is there has the captions.
CAPTION_NAMES = ("captions", "caption", "text", "txt", "sentences", "sentence", "alt_text", "alt")
CAPTION_KEYS = ("raw", "caption", "text", "sentence")  # of a caption that is a record of its own (COCO, Flickr30k)
LABEL = Source.model_fields["label_column"].default
METADATA = "metadata"  # the column of a granary dataset that holds what came with its images
PARTITION = re.compile(r"([A-Za-z_][\w.-]*)=(.+)")
WHOLE = re.compile(r"(-?\d+)\.0+")


def find(names: Sequence[str], column: str) -> str | None:
    """Return the column of that name, else the only one that differs in case alone."""
    same = [name for name in names if name.lower() == column.lower()]
    return column if column in names else same[0] if len(same) == 1 else None


def image_name(source: Source, names: Sequence[str], image_columns: Sequence[str]) -> str:
    """Return the image column: the one named, else the only one that is declared an image."""
    name = find(names, source.image_column)
    if name is None and source.image_column == "image" and len(image_columns) == 1:
        name = image_columns[0]
    if name is None:
        raise UserError(
            f"{field_name(source, 'image_column')} is {source.image_column!r}, but {source.path} has the "
            f"columns {', '.join(names) or '(none)'}: name the one that holds the images."
        )
    return name


def caption_name(source: Source, names: Sequence[str]) -> str | None:
    """Return the caption column, None where there is none."""
    choices = (source.caption_column,) if source.caption_column else CAPTION_NAMES
    return next((name for name in (find(names, choice) for choice in choices) if name), None)


def check_named(source: Source, names: Sequence[str]) -> None:
    """Raise UserError where a label or caption column that the user named is not there.

    Args:
        source: whose options name them.
        names: of the columns, or of the keys of its JSON.
    """
    for option, column in named_columns(source).items():
        if find(names, column) is None:
            there = ", ".join(names) or "no columns"
            raise UserError(
                f"{field_name(source, option)} is {column!r}, but {source.path} has {there}: give one of them, or "
                "leave the option out."
            )


def named_columns(source: Source) -> dict[str, str]:
    """Return the label and caption columns that the user named, by option."""
    label = {} if source.label_column == LABEL else {"label_column": source.label_column}
    return label | ({"caption_column": source.caption_column} if source.caption_column else {})


def captions_of(value: object) -> tuple[str, ...]:
    """Return the captions of a cell, once each: a text, bytes, a record with a text, or a list of them."""
    several = value if isinstance(value, list | tuple) else [value]
    return once(text for one in several for text in caption_texts(one))


def caption_texts(value: object) -> list[str]:
    """Return the texts of one caption: of a record that of its first known key."""
    if isinstance(value, dict):
        value = next((value[key] for key in CAPTION_KEYS if key in value), None)
        return list(captions_of(value)) if value is not None else []
    return [text_of(value)] if isinstance(value, bytes) else [value] if isinstance(value, str) else []


def once(texts: Iterable[str]) -> tuple[str, ...]:
    """Return texts without the white space around them, once each, in order; empty ones are none."""
    stripped = (plain(text).strip() for text in texts)
    return tuple(dict.fromkeys(text for text in stripped if text))


def text_of(data: bytes) -> str:
    """Return bytes as text: by their byte order mark, else UTF-8; what is no text becomes U+FFFD."""
    return data.decode(json.detect_encoding(data) if data[:4].startswith(MARKS) else "utf-8", "replace")


MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def label_of(value: object, classes: Sequence[str] | None = None) -> str | None:
    """Return the label of a cell: a class name where the number stands for one, else the value as text.

    A whole number is the same label however its column is typed (pandas writes integers with gaps as 3.0), and a list
    of one is its element; of several there is no one label.
    """
    if isinstance(value, list | tuple):
        return label_of(value[0], classes) if len(value) == 1 else None
    if value is None or isinstance(value, dict):
        return None
    number = whole(value)
    if classes and number is not None:
        return plain(classes[number]) if 0 <= number < len(classes) else None
    if isinstance(value, float) and (number is not None or math.isnan(value)):
        return None if number is None else str(number)
    text = plain(text_of(value) if isinstance(value, bytes) else str(value)).strip()
    return WHOLE.sub(r"\1", text) if WHOLE.fullmatch(text) else text or None


def whole(value: object) -> int | None:
    """Return the integer that a number is, None where it is none."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) else None


def image_of(value: object) -> tuple[bytes | None, str | None]:
    """Return (bytes, path) of an image cell: an HF Image struct, plain bytes or a path."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        return (data if isinstance(data, bytes) else None), (path if isinstance(path, str) else None)
    return (value if isinstance(value, bytes) else None), (value if isinstance(value, str) else None)


def metadata_of(cells: Mapping[str, object]) -> str | None:
    """Return what has no place of its own as JSON; the metadata of an earlier run come first, as they were."""
    earlier = earlier_metadata(cells.get(METADATA))
    rest = {name: cells[name] for name in cells if name != METADATA or earlier is None}
    kept = {**{name: jsonable(value) for name, value in rest.items() if not is_null(value)}, **(earlier or {})}
    return plain(json.dumps(kept, ensure_ascii=False)) if kept else None


def earlier_metadata(value: object) -> dict[str, object] | None:
    """Return the object that a metadata column holds as JSON, None where it holds something else."""
    try:
        record = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def is_null(value: object) -> bool:
    """Say whether a cell is empty."""
    return value in (None, "", [], {}) or (isinstance(value, float) and math.isnan(value))


def jsonable(value: object) -> object:
    """Return a value of a cell as JSON can hold it; times and decimals as texts, numbers without end as null."""
    if isinstance(value, dict):
        return {plain(str(key)): jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return plain(text_of(value))
    return value if value is None or isinstance(value, bool | int) else plain(str(value))


def described(
    source: Source, record: Mapping[str, object], classes: Sequence[str] | None = None
) -> tuple[str | None, tuple[str, ...], dict[str, object]]:
    """Return the label, the captions, and the cells that have no place of their own.

    A label or captions of a kind that is neither stay among the cells, so that nothing is lost.

    Args:
        source: whose options name the columns.
        record: cells by column.
        classes: names of the labels, by number.
    """
    if not record:  # a picture in a folder, of which there are many
        return None, (), {}
    names = list(record)
    label_column, caption_column = find(names, source.label_column), caption_name(source, names)
    label = label_of(record[label_column], classes) if label_column else None
    captions = captions_of(record[caption_column]) if caption_column else ()
    unlabelled = label_column and classes and whole(record[label_column]) == -1  # as `datasets` writes it
    placed = {label_column if label is not None or unlabelled else None, caption_column if captions else None}
    return label, captions, {name: value for name, value in record.items() if name not in placed}


def partitions(path: str) -> dict[str, str]:
    """Return the columns that the folders of a path stand for, as Hive and pyarrow write them: label=cat/0.parquet."""
    matches = (PARTITION.fullmatch(folder) for folder in path.split("/")[:-1])
    return {match[1]: unquote(match[2]) for match in matches if match and match[2] != "__HIVE_DEFAULT_PARTITION__"}
