"""Several splits, tests of a column, and both at once choose the rows they name; what does not occur is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.splits import Term, terms_of

SPLITS = ["train", "shared", "test", None]
HALVES = [1, 2, 1, 3, None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 rows in two shards of row groups of 6; the split goes round in fours, the half in fives."""
    return table(tmp_path_factory.mktemp("run"), split=[SPLITS[n % 4] for n in range(40)])


def table(folder: Path, **columns: Any) -> str:
    ids = [f"{n:04d}" for n in range(40)]
    rows = pa.table(
        {"id": ids, "half": [HALVES[n % 5] for n in range(40)], "good": [n < 20 for n in range(40)], **columns}
    )
    for number, part in enumerate((rows.slice(0, 15), rows.slice(15))):
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=6)
    return str(folder)


def numbers(path: str, split: str, **options: Any) -> list[int]:
    dataset = shards.open_dataset(path, (), split, **options)
    return [int(name) for group in dataset.groups for name in shards.read_group(group, ["id"])["id"].to_pylist()]


@pytest.mark.parametrize(
    ("split", "chosen"),
    [
        ("train", lambda n: n % 4 == 0),
        ("train,shared", lambda n: n % 4 < 2),
        (" test , train ", lambda n: n % 2 == 0),
        ("half=1", lambda n: n % 5 in (0, 2)),
        ("half=2,3", lambda n: n % 5 in (1, 3)),
        ("good=True", lambda n: n < 20),
        ("train & half=1", lambda n: n % 4 == 0 and n % 5 in (0, 2)),
        ("half=1 & train,shared & good=False", lambda n: n % 4 < 2 and n % 5 in (0, 2) and n >= 20),
    ],
)
def test_rows_are_those_that_are_named(run: str, split: str, chosen: Any) -> None:
    assert numbers(run, split) == [n for n in range(40) if chosen(n)]


def test_both_sides_of_the_hash_are_all_rows_and_one_can_be_narrowed(tmp_path: Path) -> None:
    path = table(tmp_path)
    train, test = (numbers(path, split, holdout=0.4) for split in ("train", "test"))
    assert numbers(path, "test,train", holdout=0.4) == sorted(train + test) == list(range(40))
    assert numbers(path, "train & half=1", holdout=0.4) == [n for n in train if n % 5 in (0, 2)]


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("train,held", "has no rows in split 'held'; it has shared, test, train"),
        ("half=1,7", "has no rows with half '7'; it has 1, 2, 3"),
        ("depth=1", "has no column 'depth', which split needs; its columns are id, half, good, split"),
        ("half=3 & split=train & good=True & id=0001", r"has no rows in split 'half=3 & .*'"),
        ("half=", r"split: 'half=' is not right: write SPLIT, SPLIT,SPLIT or COLUMN=VALUE,VALUE"),
        ("=1", "split: '=1' is not right"),
        ("train &", "split: 'train &' is not right"),
    ],
)
def test_what_does_not_occur_is_a_sentence(run: str, split: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        numbers(run, split)


def test_terms_are_read_as_they_are_written() -> None:
    assert terms_of("a,b & c=d,e") == [Term(None, ("a", "b")), Term("c", ("d", "e"))]
    assert Term(None, ("val", "x")).among(["train", "dev"]) == Term(None, ("dev", "x"))
    assert Term(None, ("val",)).among(["dev", "val"]) == Term(None, ("val",))


def test_a_long_list_of_what_there_is_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0000, 0001, .* and 20 more$"):
        numbers(table(tmp_path), "id=x")
