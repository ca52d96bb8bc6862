"""The sample: one row of a dataset. One `Features` object types the Parquet files and the dataset card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType

MOST_CLASSES = 10_000  # with more names, labels are text
NO_CLASS = ("", "-1")  # labels that say there is none


def sample_features(extra: Mapping[str, FeatureType] | None = None, classes: Sequence[str] = ()) -> Features:
    """Return the `datasets.Features` of a sample.

    Args:
        extra: features of the columns a way in adds (curate: seed_ids, similarities).
        classes: names of the labels, see `class_names`; labels are text where there are none.

    Returns:
        id: first 32 hex characters of the SHA-256 of the original bytes; image: those bytes, never re-encoded, and
        the file name; width, height: pixels, upright; label; captions; source: its name and the uri in it.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "width": Value("int32"),
            "height": Value("int32"),
            "label": ClassLabel(names=list(classes)) if classes else Value("string"),
            "captions": List(Value("string")),
            "source": {"name": Value("string"), "uri": Value("string")},
            **(extra or {}),
        }
    )


def curated_features(classes: Sequence[str] = ()) -> Features:
    """Return the features of a curated sample: the seeds that retrieved it, best first, and the JSON it came with."""
    from datasets import List, Value

    return sample_features(
        {
            "metadata": Value("string"),
            "seed_ids": List(Value("string")),
            "similarities": List(Value("float32")),
        },
        classes,
    )


def arrow_schema(features: Features) -> pa.Schema:
    """Return the Arrow schema with the Hugging Face metadata that types the Image column."""
    return features.arrow_schema


def class_names(labels: Iterable[str | None], absent: Sequence[str] = NO_CLASS) -> list[str]:
    """Return the names of the classes among labels, numbers by value before words; none of more than MOST_CLASSES.

    Args:
        labels: in any order, any number of times.
        absent: labels that say there is none.
    """
    names = {label for label in labels if label is not None and label not in absent}
    return sorted(names, key=natural) if len(names) <= MOST_CLASSES else []


def natural(label: str) -> tuple[int, int, str]:
    """Return the key that sorts numbers by value, before words."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def numbered(labels: pa.ChunkedArray, classes: Sequence[str]) -> pa.ChunkedArray:
    """Return labels, text, as numbers of their classes, null for no class; as they are where there are no classes."""
    return pc.index_in(labels, pa.array(classes, pa.string())).cast(pa.int64()) if classes else labels


def named(table: pa.Table) -> pa.Table:
    """Return a table with the names of classes in the place of their numbers, wherever its schema states them."""
    for column, names in stated_classes(table.schema).items():
        numbers = table[column].cast(pa.int64())
        known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names)))  # -1 is no class for `datasets`
        places = pc.if_else(known, numbers, pa.scalar(None, pa.int64()))
        labels = pc.take(pa.array(names, pa.string()), places)
        table = table.set_column(table.schema.get_field_index(column), column, labels)
    return table


def huggingface_features(schema: pa.Schema) -> dict[str, dict[str, object]]:
    """Return the features that `datasets` wrote into the schema; empty where it did not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def class_names_of(feature: Mapping[str, object]) -> list[str]:
    """Return the names of the classes that a feature states, by number; none where it is no ClassLabel."""
    names = feature.get("names")
    return [str(name) for name in names] if feature.get("_type") == "ClassLabel" and isinstance(names, list) else []


def stated_classes(schema: pa.Schema) -> dict[str, list[str]]:
    """Return for each column of numbers that `datasets` types as ClassLabel the names of its classes."""
    stated = {name: class_names_of(feature) for name, feature in huggingface_features(schema).items()}
    return {
        name: names
        for name, names in stated.items()
        if names and name in schema.names and pa.types.is_integer(schema.field(name).type)
    }


LEDGER = pa.schema(
    [
        ("uri", pa.string()),
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("role", pa.string()),
        ("status", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("representative", pa.string()),
        ("similarity", pa.float32()),
        ("component", pa.string()),
        ("tightness", pa.float32()),
        ("seed_ids", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
        ("cluster", pa.int32()),
        ("leaked_reference", pa.string()),
        ("leak_path", pa.string()),
    ]
)
"""One row per file of the pool (role "pool") and per as-is seed (role "seed"): what was decided, why, the evidence.

status: kept, dropped or dead. stage: where it was decided. representative: id of the image kept instead, similarity
to it, component: id of the component's representative, tightness: lowest similarity of a member to it.
seed_ids, similarities: the seeds that retrieved it, best first. cluster: cell it was drawn from.
leaked_reference: uri of the reference at the end of the chain; leak_path: uri of the pool image between, if any.
"""


QUALITY = pa.schema([("blur", pa.float32()), ("dark", pa.uint8()), ("bright", pa.uint8()), ("entropy", pa.float32())])
"""What was measured of the pixels of a picture, see `granary.curation.images.filters.Quality`."""

CURATED_LEDGER = pa.schema([*LEDGER, ("width", pa.int32()), ("height", pa.int32()), *QUALITY])
"""The ledger of a curation: width and height in pixels and QUALITY too, null where no picture could be read."""


class LedgerRow(TypedDict):
    """A row of LEDGER."""

    uri: str
    id: str | None
    sha256: str | None
    role: str
    status: str
    stage: str
    reason: str
    representative: str | None
    similarity: float | None
    component: str | None
    tightness: float | None
    seed_ids: list[str]
    similarities: list[float]
    cluster: int | None
    leaked_reference: str | None
    leak_path: str | None


DEAD_LETTER = pa.schema(
    [
        ("uri", pa.string()),
        ("part", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""What could not be read: the smallest thing lost, and why."""
