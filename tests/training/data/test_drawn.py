"""Rows drawn by hash: which, in whose order, and whatever split they are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Value
from tiny_shards import shapes, write_shards

from granary.training.data.crops import Crop
from granary.training.data.drawn import drawn, ids_of, some, without
from granary.training.data.passes import in_order
from granary.training.data.shards import Dataset, open_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = [{**row, "split": "test" if n % 3 == 0 else "train"} for n, row in enumerate(shapes(60, 16))]
    folder: Path = write_shards(tmp_path_factory.mktemp("run"), rows, extra={"split": Value("string")})
    return open_dataset(str(folder), split="train")


def read(dataset: Dataset) -> list[str]:
    return [name for part in in_order(dataset, Crop(1, 8, centre=True)) for name in part["id"]]


def test_drawn_rows_are_some_in_the_order_of_all(dataset: Dataset) -> None:
    every, chosen = read(dataset), drawn(dataset, 13, 0, "test")
    assert ids_of(dataset).tolist() == every
    names = read(chosen)
    assert len(names) == chosen.count == 13
    assert names == [name for name in every if name in set(names)]
    assert read(drawn(dataset, 13, 0, "test")) == names
    assert read(drawn(dataset, 13, 1, "test")) != names
    assert read(drawn(dataset, 13, 0, "another")) != names
    assert set(names) < set(read(drawn(dataset, 20, 0, "test")))
    assert drawn(dataset, 40, 0, "test") is dataset


def test_groups_know_where_their_rows_begin(dataset: Dataset) -> None:
    chosen = drawn(dataset, 13, 0, "test")
    starts = [group.start for group in chosen.groups]
    assert starts == np.cumsum([0, *(group.rows for group in chosen.groups)])[:-1].tolist()
    again = some(chosen, np.arange(13) % 2 == 0)
    assert read(again) == read(chosen)[::2]


def test_rows_of_some_ids_are_left_out(dataset: Dataset) -> None:
    every = read(dataset)
    assert read(without(dataset, every[5:20])) == every[:5] + every[20:]
    assert without(dataset, every).count == 0
    assert read(without(dataset, ["nothing"])) == every
