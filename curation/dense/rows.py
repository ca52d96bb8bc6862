"""Rows of a packed run as they are in memory; the same columns as in `granary.curation.dense.schema`."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from granary.curation.dense.tree import Box


class StoredImage(TypedDict):
    """An `Image` of the Hugging Face format: bytes, and the name of the file."""

    bytes: bytes
    path: str


class Origin(TypedDict):
    """Name of a source, and the uri in it."""

    name: str
    uri: str


class StoredMask(TypedDict):
    """The pixels of a mask: height and width, with run lengths, a 1-bit PNG, or neither for a box."""

    size: list[int]
    counts: str | None
    png: bytes | None


class MaskRow(StoredMask):
    """A mask of config `default`."""

    key: str
    parent: str
    children: list[str]
    depth: int
    label: str
    caption: str
    quality: int
    box: list[int]
    area: int | None


class WindowRow(TypedDict):
    """A window of the description of config `default`."""

    part: str
    window: int
    text: str
    tokens: int
    box: list[int]


class ImageRow(TypedDict):
    """A row of config `default`; picture and source are added where it is written."""

    id: str
    width: int
    height: int
    captions: list[str]
    file: str
    split: str
    short_caption: str
    extra_caption: str
    description: str
    words: int
    tokens: int
    unit: str
    depth: int
    masks: list[MaskRow]
    texts: list[WindowRow]
    image: NotRequired[StoredImage]
    source: NotRequired[Origin]


class EntryRow(TypedDict):
    """What a row of config `pairs` says of its entry: an image or a mask, before texts are found for it."""

    row: int
    id: str
    width: int
    height: int
    image_id: str
    parent_id: str
    file: str
    split: str
    key: str
    base: bool
    mask: str
    box: list[int]
    darkened: bool
    source: Origin


class Made(TypedDict):
    """How a text was made."""

    engine: str
    prompt: str
    seed: int | None


class NegativeRow(Made):
    """A negative of config `pairs`."""

    kind: str
    text: str
    tokens: int
    score: float | None


class PairRow(EntryRow):
    """A row of config `pairs` but for its picture."""

    captions: list[str]
    tokens: list[int]
    unit: str
    provenance: list[Made]
    negatives: list[NegativeRow]
    positive_score: float | None


def box_of(values: list[int]) -> Box:
    """Return the box of a row: x0, y0, x1, y1."""
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1
