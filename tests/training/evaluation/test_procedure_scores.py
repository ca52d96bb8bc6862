"""Scores of procedures: golden figures, closed forms and slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from granary.training.evaluation.procedures import (
    anticipation_scores,
    area_under,
    edit_scores,
    mean_accuracy,
    planning_scores,
    pooled_iou,
    prefix_distances,
    sequence_iou,
    success_rate,
)


def test_plans_that_are_exchanged_are_right_only_when_they_are_pooled() -> None:
    predicted, truth = np.array([[0, 1, 2], [3, 4, 5]]), np.array([[3, 4, 5], [0, 1, 2]])
    assert planning_scores(predicted, truth) == {"success": 0, "accuracy": 0, "iou": 0, "iou_pooled": 1}
    assert pooled_iou(predicted, truth, batch=1) == sequence_iou(predicted, truth)


def test_the_order_counts_for_all_but_the_sets() -> None:
    scores = planning_scores(np.array([[2, 1, 0]]), np.array([[0, 1, 2]]))
    assert (scores["iou"], scores["accuracy"], scores["success"]) == (1, pytest.approx(1 / 3), 0)


def test_the_size_of_a_batch_changes_the_pooled_score_alone() -> None:
    random = np.random.default_rng(0)
    predicted, truth = random.integers(0, 200, (2, 40, 3))
    halves = [slice(0, 20), slice(20, 40)]
    for score in (success_rate, mean_accuracy, sequence_iou):
        assert np.mean([score(predicted[h], truth[h]) for h in halves]) == pytest.approx(score(predicted, truth))
    assert pooled_iou(predicted, truth, 20) != pooled_iou(predicted, truth)


def test_chance_is_the_number_of_actions_to_the_power_of_the_steps() -> None:
    every = np.array(list(itertools.product(range(4), repeat=3)))
    truth = np.tile([1, 3, 3], (len(every), 1))
    assert success_rate(every, truth) == pytest.approx(4**-3)
    assert mean_accuracy(every, truth) == pytest.approx(1 / 4)


def slow_distance(one: list[int], other: list[int]) -> int:
    """Levenshtein, by the definition."""
    if not one or not other:
        return len(one) + len(other)
    same = slow_distance(one[1:], other[1:]) + (one[0] != other[0])
    return min(same, slow_distance(one[1:], other) + 1, slow_distance(one, other[1:]) + 1)


def test_distances_of_all_prefixes_are_those_of_the_recursion() -> None:
    random = np.random.default_rng(1)
    candidates, truth = random.integers(0, 3, (4, 2, 6)), random.integers(0, 3, (4, 6))
    found = prefix_distances(candidates, truth)
    for n, k, z in itertools.product(range(4), range(2), range(6)):
        assert found[n, k, z] == slow_distance(candidates[n, k, : z + 1].tolist(), truth[n, : z + 1].tolist())


def alone(candidate: list[int]) -> dict[str, float]:
    return anticipation_scores(np.array([[candidate]]), np.arange(20)[None])


def test_golden_distances_of_twenty_steps() -> None:
    right = list(range(20))
    assert alone(right) == {"edit": 0, "edit_area": 0}
    assert alone([1, 0, *right[2:]])["edit"] == pytest.approx(0.10)  # Damerau's would be 0.05
    assert alone([*right[1:], 99])["edit"] == pytest.approx(0.10)
    assert alone([99] * 20)["edit"] == 1
    half = edit_scores(np.array([[[*right[:10], *[99] * 10]]]), np.arange(20)[None])
    assert (half[19], half[10]) == (0.5, pytest.approx(1 / 11))
    assert area_under(half) == pytest.approx(0.161173, abs=1e-6)


def test_the_best_candidate_counts_and_more_of_them_are_never_worse() -> None:
    random = np.random.default_rng(2)
    truth, candidates = random.integers(0, 5, (30, 20)), random.integers(0, 5, (30, 5, 20))
    scores = [edit_scores(candidates[:, : k + 1], truth)[-1] for k in range(5)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0]
    whole = prefix_distances(candidates, truth)[:, :, -1].min(axis=1).mean() / 20
    assert scores[-1] == pytest.approx(whole)
    candidates[:, 3] = truth
    assert edit_scores(candidates, truth)[-1] == 0
