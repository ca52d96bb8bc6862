"""What the columns of a table mean to a training, whoever wrote it: their names, and values in granary's types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from granary.curation.errors import UserError
from granary.curation.sources import columns as cells
from granary.curation.store.schema import class_names_of, huggingface_features
from granary.training.data.table import Columns

SEVERAL = "images"  # the column of several pictures of a row; `image` stands for it where there is none
NAMEABLE = ("image", "label", "captions", "id")
TEXTS = pa.list_(pa.string())
NONE: Mapping[str, float] = {"int64": -1, "float32": np.nan, "bool": 0}  # what stands for no value in a tensor
Names = Sequence[str] | None  # of the classes, where a number stands for one


@dataclass(frozen=True)
class Layout:
    """What a shard has.

    Args:
        names: our name of a column -> that in the shard, of those that can be read.
        types: theirs, by our name.
        classes: names of the classes, by our name, where a number stands for one.
        columns: all its columns, for messages.
    """

    names: Mapping[str, str]
    types: Mapping[str, pa.DataType]
    classes: Mapping[str, Sequence[str]]
    columns: Sequence[str]

    def stored(self, columns: Sequence[str]) -> list[str]:
        """Return the names that some of our columns are read by; of a picture the bytes alone."""
        there = [name for name in columns if name in self.names]
        paths = (_bytes_of(self.names[n], self.types[n]) if n == "image" else self.names[n] for n in there)
        return list(dict.fromkeys(paths))


def layout_of(schema: pa.Schema, columns: Columns) -> Layout:
    """Return what a shard has; columns without a use for us keep their names and types."""
    names = {name: name for name in schema.names}
    for ours, theirs in columns.named().items():
        name = theirs or _usual(ours, schema)
        names.pop(ours, None)
        if name in schema.names:
            names[ours] = name
    types = {ours: schema.field(theirs).type for ours, theirs in names.items()}
    features = huggingface_features(schema)
    classes = {ours: class_names_of(features.get(theirs, {})) for ours, theirs in names.items()}
    readable = {ours: theirs for ours, theirs in names.items() if _is_of_use(ours, types[ours], types)}
    return Layout(readable, types, {ours: listed for ours, listed in classes.items() if listed}, schema.names)


def check_layout(
    layout: Layout, columns: Columns, needs: Sequence[str], path: str, why: str, categories: Sequence[str] = ()
) -> None:
    """Raise UserError where a column that is named or needed is missing, or is of a type that cannot be read."""
    known = ", ".join(layout.columns)
    for ours, name in columns.named().items():
        if name is not None and name not in layout.columns:
            raise UserError(f"data.{_option(ours)}: {path} has no column {name!r}; it has {known}")
    for name in (stored_pictures(name, layout.types) for name in needs):
        if name not in layout.types:
            hint = f"; name the right one with --data.{_option(name)}"
            raise UserError(f"data: {path} has no column {name!r}, which {why} needs; its columns are {known}{hint}")
        reader = reader_of(name, categories)
        if not reader.fits(layout.types[name]):
            raise UserError(f"data: the column {name} of {path} is {layout.types[name]}; {reader.must}")


def stored_pictures(name: str, there: Collection[str]) -> str:
    """Return the column that a column is read from: of several pictures `image` where only that is there."""
    return "image" if name == SEVERAL and SEVERAL not in there and "image" in there else name


def _option(ours: str) -> str:
    """Return the key of a dataset that says what a column of ours is called there."""
    return ours if ours in NAMEABLE else f"names.{ours}"


def _usual(ours: str, schema: pa.Schema) -> str | None:
    """Return the name that a column has where nobody gave one: ours, or what others call it."""
    if ours == "image" and ours not in schema.names:
        pictures = [part.name for part in schema if pa.types.is_struct(part.type) and _is_picture(part.type)]
        return pictures[0] if len(pictures) == 1 else None
    usual = cells.CAPTION_NAMES if ours == "captions" else (ours,)
    return next((name for name in usual if name in schema.names), None)


def _bytes_of(name: str, kind: pa.DataType) -> str:
    return f"{name}.bytes" if pa.types.is_struct(kind) else name


def _is_of_use(name: str, kind: pa.DataType, types: Mapping[str, pa.DataType]) -> bool:
    """Say whether a column of ours by name is so by type; sizes and sources of other tables may mean other things."""
    if name in ("width", "height"):
        return pa.types.is_integer(kind) and "source" in types and _is_source(types["source"])
    if name == "source":
        return _is_source(kind) or _is_text(kind)
    return name not in ("id", "row_id") or _is_text(kind) or pa.types.is_integer(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_picture(kind: pa.DataType) -> bool:
    """Say whether a column holds pictures: bytes, or a struct of bytes and path as `datasets` writes it."""
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    place = kind.get_field_index("bytes")
    return place >= 0 and _is_bytes(kind.field(place).type)


def _are_pictures(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_picture(kind.value_type)


def _is_source(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("uri") >= 0


def _is_label(kind: pa.DataType) -> bool:
    inner = kind.value_type if _is_list(kind) else kind
    return pa.types.is_dictionary(inner) or not pa.types.is_nested(inner)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _are_captions(kind: pa.DataType) -> bool:
    """Say whether a column holds captions: a text, an object with one, a list of them; or nothing at all."""
    if _is_list(kind):
        return _are_captions(kind.value_type)
    if pa.types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 for name in cells.CAPTION_KEYS)
    return _is_text(kind) or _is_bytes(kind) or pa.types.is_null(kind)


def _labels(array: pa.Array, classes: Names) -> pa.Array:
    """Return labels as texts: 3 and 3.0 are one, a number that stands for a class is its name."""
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    if _is_list(array.type):
        return pa.array([cells.label_of(value, classes) for value in array.to_pylist()], pa.string())
    coded = array.dictionary_encode()
    names = [cells.label_of(value, classes) for value in coded.dictionary.to_pylist()]
    return pa.array(names, pa.string()).take(coded.indices)


def _captions(array: pa.Array, classes: Names) -> pa.Array:
    """Return captions as lists of texts."""
    if pa.types.is_list(array.type) and pa.types.is_string(array.type.value_type):
        return array
    return pa.array([list(cells.captions_of(value)) for value in array.to_pylist()], TEXTS)


def _lists_of_texts(array: pa.Array) -> list[Any]:
    """Return captions as Python lists, empty where there are none."""
    return [texts or [] for texts in array.to_pylist()]


def _texts(array: pa.Array, classes: Names) -> pa.Array:
    return array.cast(pa.string())


def _field(name: str) -> Callable[[pa.Array, Names], pa.Array]:
    """Return what takes a field out of a struct; other values stay."""
    return lambda array, classes: array.field(name) if pa.types.is_struct(array.type) else array


def _as_stored(array: pa.Array, classes: Names) -> pa.Array:
    """Return values as they are, numbers that stand for classes as the names of these."""
    return _labels(array, classes) if classes else array


def kind_of(stored: pa.DataType) -> str:
    """Return what values of a type are in a batch: the dtype of a tensor, with its width, or "objects"."""
    if pa.types.is_fixed_size_list(stored):
        inner = kind_of(stored.value_type)
        return f"{inner} x {stored.list_size}" if inner in NONE else "objects"
    kinds = {"int64": pa.types.is_integer, "float32": pa.types.is_floating, "bool": pa.types.is_boolean}
    return next((kind for kind, fits in kinds.items() if fits(stored)), "objects")


def values_of(array: pa.Array) -> Sequence[Any] | NDArray[Any]:
    """Return numbers, and lists of one length of them, as an array; other values as Python objects.

    Whole numbers are int64, -1 for none; others float32, NaN for none; truth values bool, False for none.
    """
    kind, _, width = kind_of(array.type).partition(" x ")
    if kind not in NONE:
        return array.to_pylist()
    if not width:
        return _numbers(array, kind)
    values: NDArray[Any] = np.full((len(array), int(width)), NONE[kind], kind)
    values[_numbers(array.is_valid(), "bool")] = _numbers(array.drop_null().flatten(), kind).reshape(-1, int(width))
    return values


def _numbers(array: pa.Array, kind: str) -> NDArray[Any]:
    """Return numbers as an array, without what imports pandas in every worker: `to_numpy`, and a scalar of Arrow."""
    stored = array.cast({"int64": pa.int64(), "float32": pa.float32(), "bool": pa.int8()}[kind], safe=False)
    numbers: NDArray[Any] = np.from_dlpack(stored.fill_null(NONE[kind]) if stored.null_count else stored)
    return numbers.astype(kind)


@dataclass(frozen=True)
class Reader:
    """How a column is read.

    Args:
        convert: (values, names of classes) -> values in granary's type.
        fits: says whether values of a type can be read.
        must: what fits, for messages.
        values: values in granary's type -> those of the rows in a batch.
    """

    convert: Callable[[pa.Array, Names], pa.Array] = _as_stored
    fits: Callable[[pa.DataType], bool] = lambda _: True
    must: str = ""
    values: Callable[[pa.Array], Sequence[Any] | NDArray[Any]] = values_of


PICTURE_MUST = "it must hold the bytes of pictures, plain or in a struct with a field bytes"
LABEL_MUST = "a label is a number, a text or a truth value, or a list of one"
READERS: Mapping[str, Reader] = {
    "image": Reader(_field("bytes"), _is_picture, PICTURE_MUST),
    SEVERAL: Reader(fits=_are_pictures, must="it must be a list of pictures, each with its bytes"),
    "label": Reader(_labels, _is_label, LABEL_MUST),
    "captions": Reader(_captions, _are_captions, "it must be a list of texts, or a text", _lists_of_texts),
    "split": Reader(_labels),
    "id": Reader(_texts),
    "row_id": Reader(_texts),
    "source": Reader(_field("uri")),
}
PLAIN = Reader()


def reader_of(name: str, categories: Collection[str] = ()) -> Reader:
    """Return how a column is read; a category as a label is, a column without a reader of its own as it is."""
    return READERS["label"] if name in categories else READERS.get(name, PLAIN)
