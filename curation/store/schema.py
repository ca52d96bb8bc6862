"""The sample: one row of a dataset. One `Features` object types the Parquet files and the dataset card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Features
    from datasets.features.features import FeatureType


def sample_features(extra: Mapping[str, FeatureType] | None = None) -> Features:
    """Return the `datasets.Features` of a sample.

    Args:
        extra: features of the columns a way in adds (curate: seed_ids, similarities).

    Returns:
        id: first 32 hex characters of the SHA-256 of the original bytes.

    Args:
        image: those bytes, never re-encoded, and
        the file name.
        width: pixels, upright; label; captions.
        height: pixels, upright; label; captions.
        source: its name and the uri in it.
    .
    """
    from datasets import Features, Image, List, Value

    return Features(
        {
            "id": Value("string"),
            "image": Image(),
            "width": Value("int32"),
            "height": Value("int32"),
            "label": Value("string"),
            "captions": List(Value("string")),
            "source": {"name": Value("string"), "uri": Value("string")},
            **(extra or {}),
        }
    )


def curated_features() -> Features:
    """Return the features of a curated sample: the seeds that retrieved it, best first, and the JSON it came with."""
    from datasets import List, Value

    return sample_features(
        {
            "metadata": Value("string"),
            "seed_ids": List(Value("string")),
            "similarities": List(Value("float32")),
        }
    )


def arrow_schema(features: Features) -> pa.Schema:
    """Return the Arrow schema with the Hugging Face metadata that types the Image column."""
    return features.arrow_schema


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
