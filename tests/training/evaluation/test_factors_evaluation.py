"""Accuracy by factor against a group-by of plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from granary.training.evaluation.factors import accuracy_by_factor


def random_columns(n: int) -> tuple[dict[str, list[object]], np.ndarray]:
    rng = np.random.default_rng(0)
    columns: dict[str, list[object]] = {
        "world": rng.choice(["Desert", "Snow", "Beach"], n).tolist(),
        "scale": rng.choice([0.7, 1.0, 1.3], n).tolist(),
    }
    return columns, rng.random(n) < 0.3


def test_accuracy_agrees_with_a_plain_group_by() -> None:
    columns, correct = random_columns(500)
    rows = accuracy_by_factor(columns, correct)
    assert (rows[0].samples, rows[0].accuracy) == (500, pytest.approx(correct.mean()))
    assert len(rows) == 7
    for row in rows[1:]:
        mine = [c for c, value in zip(correct, columns[row.factor], strict=True) if value == row.value]
        assert row.samples == len(mine)
        assert row.accuracy == pytest.approx(sum(mine) / len(mine))
    assert [row.value for row in rows if row.factor == "scale"] == [0.7, 1.0, 1.3]


def test_interval_is_that_of_an_independent_library() -> None:
    columns, correct = random_columns(90)
    for row in accuracy_by_factor(columns, correct):
        expected = binomtest(round(row.accuracy * row.samples), row.samples).proportion_ci(method="wilson")
        assert (row.low, row.high) == (pytest.approx(expected.low, abs=1e-6), pytest.approx(expected.high, abs=1e-6))


def test_a_sample_of_one_factor_data_counts_for_the_factor_it_varies() -> None:
    columns = {"world": ["A", "B", "A", "A"], "scale": [1.0, 1.0, 0.5, 1.5]}
    rows = accuracy_by_factor(columns, np.array([1, 0, 1, 0], bool), ["world", "world", "scale", "scale"])
    assert [(row.factor, row.value, row.samples, row.accuracy) for row in rows[1:]] == [
        ("world", "A", 1, 1.0),
        ("world", "B", 1, 0.0),
        ("scale", 0.5, 1, 1.0),
        ("scale", 1.5, 1, 0.0),
    ]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 predictions"):
        accuracy_by_factor({"world": ["A"]}, np.ones(3, bool))


def test_numbers_come_in_order_and_before_words() -> None:
    rows = accuracy_by_factor({"size": ["big", 10, 2.5, None, True]}, np.ones(5, bool))
    assert [row.value for row in rows[1:]] == [True, 2.5, 10, None, "big"]
