"""How many samples each class needs, and the rows to draw: ids, seeds and conditioning pictures by hash.

A cell is a class, or a class in a group. A row is known before there is a picture: its id is a hash of
(run seed, class, group, ordinal), its noise a hash of (run seed, id). Nothing depends on order, worker or time, and
a larger fill level keeps all rows of a smaller one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeVar

from granary.curation.runs.run import digest
from granary.curation.store import sampling
from granary.synth.feedback.recipe import Groups

T = TypeVar("T")


class Cell(NamedTuple):
    """A class, or a class in a group; group is "" where the dataset has none."""

    label: str
    group: str = ""


class PlannedSample(NamedTuple):
    """One planned sample.

    Args:
        ordinal: its number in the cell, from 0.
    """

    row_id: str
    cell: Cell
    ordinal: int


def shortfalls(counts: Mapping[Cell, int], level: int | None = None, empty: bool = False) -> dict[Cell, int]:
    """Return how many samples fill each cell up to a level: max(M - n, 0).

    Args:
        counts: real pictures of each cell.
        level: M; the largest count by default.
        empty: also fill the cells of a class and a group that both occur, but not together.
    """
    most = max(counts.values(), default=0) if level is None else level
    cells = {*counts}
    if empty:
        cells |= {Cell(*pair) for pair in product({c.label for c in counts}, {c.group for c in counts})}
    return {cell: max(most - counts.get(cell, 0), 0) for cell in sorted(cells)}


def plan_rows(needed: Mapping[Cell, int], seed: int) -> list[PlannedSample]:
    """Return all rows, sorted by id: the cells come mixed, in an order that is a hash."""
    rows = [PlannedSample(row_id(seed, cell, i), cell, i) for cell, count in needed.items() for i in range(count)]
    return sorted(rows)


def row_id(seed: int, cell: Cell, ordinal: int) -> str:
    """Return the identity of a row: 32 hex characters."""
    return digest("row", seed, cell.label, cell.group, ordinal)[:32]


def row_seed(seed: int, row: str, attempt: int = 0) -> int:
    """Return the seed of a row's noise, below 2^63; a second attempt has another."""
    return hashed(seed, "noise", row, attempt) >> 1


def choose(items: Sequence[T], seed: int, row: str) -> T:
    """Return the item, of a sorted sequence, that a row is conditioned on."""
    return items[hashed(seed, "condition", row) % len(items)]


def hashed(*values: str | int) -> int:
    """Return a number of 64 bits, the same everywhere for the same plain values."""
    return sampling.hashed(json.dumps(values))


def group_of(groups: Groups, uri: str, source: str, metadata: str | None) -> str | None:
    """Return the group of a real picture; None where it cannot be told.

    Args:
        groups: where the group is told.
        uri, source, metadata: of the picture; its source by name.
    """
    if groups.by == "none":
        return ""
    if groups.by == "source":
        return source
    if groups.by == "path":
        return _named(groups.pattern, uri, "group")
    try:
        value = json.loads(metadata or "{}").get(groups.key)
    except (ValueError, AttributeError):
        return None
    return None if value is None else str(value)


def class_of(groups: Groups, uri: str, label: str | None) -> str | None:
    """Return the class of a real picture: what the pattern calls `class`, else the label of its source."""
    if groups.by == "path" and "(?P<class>" in groups.pattern:
        return _named(groups.pattern, uri, "class")
    return label


def _named(pattern: str, uri: str, name: str) -> str | None:
    match = re.search(pattern, uri)
    return match.group(name) if match else None
