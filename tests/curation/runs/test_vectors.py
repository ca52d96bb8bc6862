"""Embeddings survive the way to disk and back, and rows are found by their global index."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from granary.curation.runs.vectors import Layout, from_column, load, to_column

SIZES = [3, 0, 5, 4, 1]


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> tuple[Layout, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(sum(SIZES), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    status = np.where(rng.random(len(vectors)) < 0.3, "dead", "ok")
    starts = np.concatenate([[0], np.cumsum(SIZES)])
    parts = []
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        table = pa.table({"status": status[start:stop], "embedding": to_column(vectors[start:stop])})
        parts.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(table, parts[-1])
    return Layout(parts, starts), vectors, status


def test_a_column_returns_unit_rows() -> None:
    rows = np.array([[3, 4], [0, 0], [1, 0]], np.float32)
    back = from_column(to_column(rows))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)
    assert from_column(to_column(rows[:0])).shape == (0, 2)


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 100])
def test_blocks_partition_the_parts(stage: tuple[Layout, np.ndarray, np.ndarray], rows: int) -> None:
    layout = stage[0]
    blocks = layout.blocks(rows)
    assert [block[0] for block in blocks[1:]] == [block[1] for block in blocks[:-1]]
    assert (blocks[0][0], blocks[-1][1]) == (0, len(SIZES))
    for first, last in blocks:
        assert last - first == 1 or layout.starts[last] - layout.starts[first] <= rows


def test_load_gives_the_living_rows_of_a_block(stage: tuple[Layout, np.ndarray, np.ndarray]) -> None:
    layout, vectors, status = stage
    alive = np.array([0, 2, 4, 5, 9, 12])
    indices, loaded = load(layout, (1, 5), alive)
    expected = [index for index in alive if index >= 3 and status[index] == "ok"]
    assert indices.tolist() == expected
    np.testing.assert_allclose(loaded, vectors[expected], atol=1e-3)
    assert load(layout, (0, 5))[0].tolist() == np.flatnonzero(status == "ok").tolist()


def test_take_keeps_the_order_asked_for(stage: tuple[Layout, np.ndarray, np.ndarray]) -> None:
    layout, vectors, _ = stage
    wanted = np.array([12, 0, 7, 7, 3])
    np.testing.assert_allclose(from_column(layout.take(wanted, ["embedding"])["embedding"]), vectors[wanted], atol=1e-3)
    assert layout.take(wanted[:0], ["status"]).num_rows == 0
