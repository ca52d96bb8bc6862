"""Boxes in the columns that granary and others write, and what is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.errors import UserError
from granary.training.data.boxes import boxes_column, boxes_of
from granary.training.data.shards import open_dataset


@pytest.mark.parametrize(
    ("cell", "boxes"),
    [
        (None, []),
        ([], []),
        ([[1, 2, 3, 4]], [(1, 2, 3, 4)]),
        ([{"name": "a", "box": [1, 2, 3.5, 4]}, {"name": "b", "box": None}, {"name": "c"}], [(1, 2, 3.5, 4)]),
        ([[0, 0, 0, 0], [-3, 0, 900, 1]], [(0, 0, 0, 0), (-3, 0, 900, 1)]),
    ],
)
def test_boxes_of_lists_and_of_records(cell: object, boxes: object) -> None:
    assert boxes_of(cell, "objects of RUN") == boxes


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[1, 2, 3, 4]", "is no list of boxes"),
        ({"bbox": [[1, 2, 3, 4]]}, "is no list of boxes"),
        ([1, 2, 3, 4], r"1 is not \[left, top, right, bottom\]"),
        ([[1, 2, 3]], r"\[1, 2, 3\] is not"),
        ([["a", 2, 3, 4]], "is not"),
        ([[5, 2, 3, 4]], "right or bottom comes before left or top"),
        ([[0, float("nan"), 3, 4]], "right or bottom comes before left or top"),
    ],
)
def test_what_is_no_box_is_said_in_a_sentence(cell: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^boxes: objects of RUN is not right: .*{message}"):
        boxes_of(cell, "objects of RUN")


def test_the_column_is_the_given_one_or_a_usual_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "masks": [1], "objects": [1]}), tmp_path / "a.parquet")
    dataset = open_dataset(str(tmp_path), ())
    assert boxes_column(dataset) == "objects"
    assert boxes_column(dataset, "masks") == "masks"
    with pytest.raises(UserError, match=r"boxes: .* has no column 'regions'; its columns are masks, objects, id"):
        boxes_column(dataset, "regions")
