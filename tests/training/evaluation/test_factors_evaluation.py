"""Accuracy by factor against a group-by of plain loops, and the traps of PUG's released scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from granary.training.evaluation.factors import (
    accuracy_by_factor,
    attainable,
    correct_labels,
    hard_negative_correct,
    plot_accuracies,
    retrieval_correct,
    unreachable,
    written_table,
)

MAPPING = {"Wolf": [269, 270, 271, 272], "Sweatshirt": [841], "Shirt": [841], "Cat": [281, 282]}


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


def test_a_shared_index_makes_a_label_unreachable_only_when_inverted() -> None:
    assert unreachable(MAPPING) == {"Sweatshirt"}  # the last label that names 841 keeps it
    labels = ["Sweatshirt", "Shirt", "Wolf", "Cat"]
    scores = np.zeros((4, 1000))
    for i, index in enumerate((841, 841, 272, 281)):
        scores[i, index] = 1
    assert correct_labels(scores, labels, MAPPING).tolist() == [True] * 4
    assert correct_labels(scores, labels, MAPPING, inverted=True).tolist() == [False, True, True, True]
    assert attainable(labels, MAPPING) == 1.0
    assert attainable(labels, MAPPING, inverted=True) == 0.75


def test_argmax_over_mapped_classes_only_is_never_lower() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(list(MAPPING), 400).tolist()
    scores = rng.normal(size=(400, 1000))
    for i, label in enumerate(labels):
        scores[i, MAPPING[label][0]] += 2.5
    everything = correct_labels(scores, labels, MAPPING)
    mapped = correct_labels(scores, labels, MAPPING, among="mapped")
    assert not (everything & ~mapped).any()
    assert mapped.mean() > everything.mean() + 0.1


def test_a_constant_scorer_gets_half_of_the_hard_negatives() -> None:
    n = 4000
    constant = np.zeros(n)
    share = hard_negative_correct(constant, constant, [f"row-{i}" for i in range(n)]).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / n)
    assert hard_negative_correct(constant + 1, constant).all()
    assert not hard_negative_correct(constant - 1, constant).any()


def test_retrieval_is_top_k_and_ties_fall_by_chance() -> None:
    similarity = np.random.default_rng(2).normal(size=(50, 32))
    truth = np.arange(50) % 32
    ranks = (np.argsort(-similarity, axis=1) == truth[:, None]).argmax(axis=1)
    for k in (1, 5, 32):
        assert retrieval_correct(similarity, truth.tolist(), k).tolist() == (ranks < k).tolist()
    n = 6000
    share = retrieval_correct(np.zeros((n, 4)), [0] * n).mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n)


def test_table_and_plot(tmp_path: Path) -> None:
    columns, correct = random_columns(60)
    rows = accuracy_by_factor(columns, correct)
    table = written_table(rows).splitlines()
    assert len(table) == 2 + len(rows)
    assert table[2].startswith("| all | all | 60 | ")
    plot_accuracies(rows, str(tmp_path / "factors.png"))
    with Image.open(tmp_path / "factors.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10
        assert image.width == 720
