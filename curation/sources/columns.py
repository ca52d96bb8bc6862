"""What the columns of a table row (Parquet, `datasets`, lists of URLs, JSON of a shard) mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from granary.curation.errors import UserError
from granary.curation.sources.model import Source, field_name, plain

CAPTION_NAMES = ("captions", "caption", "text")


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


def captions_of(value: object) -> tuple[str, ...]:
    """Return the captions of a cell that is a text or a list of texts; anything else has none."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return tuple(plain(text) for text in texts if isinstance(text, str) and text.strip())


def label_of(value: object, classes: Sequence[str] | None = None) -> str | None:
    """Return the label of a cell: a class name where the number stands for one, else the value as text."""
    if value is None or isinstance(value, dict | list | tuple | bytes):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    if classes and isinstance(value, int):
        return plain(classes[value]) if 0 <= value < len(classes) else None
    return plain(str(value)) or None


def image_of(value: object) -> tuple[bytes | None, str | None]:
    """Return (bytes, path) of an image cell: an HF Image struct, plain bytes or a path."""
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        return (data if isinstance(data, bytes) else None), (path if isinstance(path, str) else None)
    return (value if isinstance(value, bytes) else None), (value if isinstance(value, str) else None)
