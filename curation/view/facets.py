"""What pictures are filtered by: of each facet the value of every row as a small number, and the names of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from granary.curation.report.survey import generalise
from granary.curation.view.catalogue import Catalogue, stage_columns

MOST_VALUES = 20_000  # names that a page is sent; the others are one value
OTHER, NONE = "(other)", "(none)"
NAMED_AFTER = ("seeds", "references", "data")  # roles whose files stand behind ids


@dataclass(frozen=True)
class Facet:
    """One way to divide the rows of a page.

    Args:
        name: of the facet.
        values: names of its values, the most frequent first.
        codes: (m,) uint16, a value of each entry.
        starts: (n + 1,) uint32, where a row may have several values: its entries; None where each row has one.
    """

    name: str
    values: list[str]
    codes: NDArray[np.uint16]
    starts: NDArray[np.uint32] | None = None


def facets_of(catalogue: Catalogue) -> list[Facet]:
    """Return the facets by which the rows of a catalogue differ."""
    ledger, label = catalogue.ledger, catalogue.texts["label"]
    single = {
        "status": ledger["status"],
        "stage": ledger["stage"],
        "reason": _renamed(ledger["reason"], generalise),
        "role": ledger["role"],
        "source": pc.struct_field(pc.extract_regex(ledger["uri"], r"^(?P<name>[^/]*)/"), "name"),
        "label": label,
        "cluster": ledger["cluster"].cast(pa.string()),
    }
    made = [encode(name, column) for name, column in single.items() if column.null_count < len(column)]
    kept = [facet for facet in made if len(facet.values) > 1 or facet.name in ("status", "stage", "reason")]
    seeds = _seeds(catalogue)
    return [*kept, seeds] if len(seeds.values) > 1 else kept


def encode(name: str, column: pa.ChunkedArray) -> Facet:
    """Return a facet of a column of texts, null for no value.

    >>> facet = encode("label", pa.chunked_array([["cat", "dog", None, "cat"]]))
    >>> facet.values, facet.codes.tolist()
    (['cat', '(none)', 'dog'], [0, 2, 1, 0])
    """
    texts = pc.fill_null(column.combine_chunks().cast(pa.string()), NONE).dictionary_encode()
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    names, codes = texts.dictionary.to_pylist(), texts.indices.to_numpy()
    return _numbered(name, names, codes)


def _numbered(name: str, names: list[str], codes: NDArray[np.int32]) -> Facet:
    """Return a facet whose values are numbered by frequency, then by name; the rarest of too many are one."""
    counts = np.bincount(codes, minlength=len(names))
    order = sorted(range(len(names)), key=lambda number: (-counts[number], names[number]))
    shown = order[:MOST_VALUES]
    rank = np.full(len(names), len(shown), np.uint16)
    rank[shown] = np.arange(len(shown), dtype=np.uint16)
    values = [names[number] for number in shown] + [OTHER] * (len(order) > len(shown))
    return Facet(name, values, rank[codes] if len(names) else codes.astype(np.uint16))


def _renamed(column: pa.ChunkedArray, rename: Callable[[str], str]) -> pa.ChunkedArray:
    """Return a column with each distinct text renamed once."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    names = pa.array([rename(text) for text in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([names.take(encoded.indices)], pa.string())


def _seeds(catalogue: Catalogue) -> Facet:
    """Return the facet of what retrieved an image; a row without seeds has the value NONE."""
    lists = pc.fill_null(catalogue.ledger["seed_ids"].combine_chunks(), [])
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths = pc.list_value_length(lists).to_numpy()
    alone = lengths == 0
    starts = np.concatenate([[0], np.cumsum(np.where(alone, 1, lengths))]).astype(np.uint32)
    uris = _names_of_ids(catalogue)
    encoded = lists.flatten().dictionary_encode()
    names = [NONE, *(uris.get(identity, identity) for identity in encoded.dictionary.to_pylist())]
    codes = np.zeros(int(starts[-1]), np.int32)
    codes[np.repeat(~alone, np.where(alone, 1, lengths))] = encoded.indices.to_numpy() + 1
    facet = _numbered("seed", names, codes)
    return Facet("seed", facet.values, facet.codes, starts)


def _names_of_ids(catalogue: Catalogue) -> Mapping[str, str]:
    """Return the first uri of each id of the roles that stand behind ids."""
    names: dict[str, str] = {}
    for role in NAMED_AFTER:
        if catalogue.run.parts(role):
            table = stage_columns(catalogue.run, role, ["id", "uri"])
            for row in table.to_pylist():
                names.setdefault(row["id"], row["uri"])
    return names
