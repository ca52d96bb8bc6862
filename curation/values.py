"""How the value of a field may be written: one value, a list, or a list as words with commas between."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Literal

from pydantic.fields import FieldInfo

PLAIN = (bool, int, float, str)
Sentence = Annotated[str, "one text, whatever commas it has"]  # what lists of texts are made of


def as_written(value: object, field: FieldInfo) -> object:
    """Return what a user wrote as what the type of a field can be made of: `64,128` for a list is [64, 128].

    Args:
        value: a text from a command line or YAML, or whatever YAML holds.
        field: of a group of options.

    Raises:
        ValueError: a list where the field takes one value, or a list of another length than the field's.
    """
    taken = members(field.annotation)
    if value is None and any(typing.get_origin(one) is Literal and "none" in typing.get_args(one) for one in taken):
        return "none"  # on a command line the word is read as nothing
    if isinstance(value, list | tuple) and all(map(is_plain, taken)):
        raise ValueError(f"it takes one value, and {len(value)} are given")
    if len(taken) != 1 or typing.get_origin(taken[0]) not in (list, tuple):
        return value
    element = typing.get_args(taken[0])[0]
    if isinstance(value, str) and is_plain(element):
        value = [value] if element == Sentence else [word.strip() for word in value.split(",") if word.strip()]
    length = length_of(taken[0])
    if length is not None and isinstance(value, list | tuple) and len(value) != length:
        raise ValueError(f"it takes {length} values, and {len(value)} {'is' if len(value) == 1 else 'are'} given")
    return value


def members(annotation: object) -> list[object]:
    """Return the members of a union, without None; a type that is none is its own only member."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    inner = typing.get_args(annotation) if union else (annotation,)
    return [member for member in inner if member is not type(None)]


def is_plain(annotation: object) -> bool:
    """Say whether a type is a number, a text, a truth value or one of a few words."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return is_plain(typing.get_args(annotation)[0])
    return annotation in PLAIN or origin is Literal


def length_of(annotation: object) -> int | None:
    """Return how many values a list or tuple has; None for any number."""
    inner = typing.get_args(annotation)
    return None if typing.get_origin(annotation) is list or Ellipsis in inner else len(inner)
