"""Boxes of what pictures show, as the columns of shards have them: (left, top, right, bottom) in pixels."""

from __future__ import annotations

from collections.abc import Mapping

from granary.curation.errors import UserError
from granary.training.data.crops import Box
from granary.training.data.shards import Dataset

USUAL = ("boxes", "objects", "masks")  # of tables of others; of granary render; of granary pack
FIELD = "box"  # of a record in such a column


def boxes_column(dataset: Dataset, given: str | None = None) -> str | None:
    """Return the column of a dataset that holds boxes: the given one, else the first usual one; None for none.

    Raises:
        UserError: the given one is not there.
    """
    if given is not None and given not in dataset.columns:
        known = ", ".join(dataset.columns)
        raise UserError(f"boxes: {dataset.path} has no column {given!r}; its columns are {known}")
    return given or next((name for name in USUAL if name in dataset.columns), None)


def boxes_of(cell: object, where: str) -> list[Box]:
    """Return the boxes of a cell: a list of four numbers each, or of records with a field `box`; none of an empty one.

    Args:
        cell: of the column.
        where: names column and dataset, for messages.

    Raises:
        UserError: it is something else, or a box that has its right edge left of its left one.
    """
    entries = [] if cell is None else cell
    if not isinstance(entries, list):
        raise UserError(f"boxes: {where} is not right: {_brief(cell)} is no list of boxes")
    boxes = [_box(entry.get(FIELD) if isinstance(entry, Mapping) else entry, where) for entry in entries]
    return [box for box in boxes if box is not None]


def _box(value: object, where: str) -> Box | None:
    """Return a box; None for a record without one."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(isinstance(x, int | float) for x in value):
        raise UserError(f"boxes: {where} is not right: {_brief(value)} is not [left, top, right, bottom] in pixels")
    left, top, right, bottom = (float(x) for x in value)
    if not (left <= right and top <= bottom):  # also where one is not a number
        raise UserError(f"boxes: {where} is not right: in {_brief(value)} right or bottom comes before left or top")
    return left, top, right, bottom


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
