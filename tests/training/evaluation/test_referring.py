"""Scores of answers with boxes and masks: golden figures, and slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from granary.training.evaluation.referring import Answer, box_f1, box_iou, mask_scores


def boxes(seed: int, count: int) -> np.ndarray:
    corners = np.random.default_rng(seed).integers(0, 20, (count, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1).astype(float)


def test_overlaps_are_those_of_counted_pixels() -> None:
    one, other = boxes(0, 7), boxes(1, 5)
    for (row, a), (column, b) in itertools.product(enumerate(one), enumerate(other)):
        first, second = (np.zeros((25, 25), bool) for _ in range(2))
        for mask, box in ((first, a), (second, b)):
            left, top, right, bottom = box.astype(int)
            mask[top:bottom, left:right] = True
        union = (first | second).sum()
        rows, columns = np.nonzero(first | second)
        around = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        iou = (first & second).sum() / union
        assert box_iou(one, other)[row, column] == pytest.approx(iou)
        assert box_iou(one, other, generalised=True)[row, column] == pytest.approx(iou - (around - union) / around)


def test_two_answers_far_from_one_truth_are_wrong() -> None:
    far = np.array([[50.0, 50, 60, 60], [70, 70, 80, 80]])
    truth = np.array([[0.0, 0, 10, 10]])
    assert box_f1(far, truth) == 0
    assert box_f1(truth, truth) == 1
    assert box_f1(np.concatenate([truth, far]), truth) == pytest.approx(2 / 4)
    assert box_f1(np.concatenate([truth, truth]), truth) == pytest.approx(2 / 3)  # one to one


def test_no_target_is_right_only_without_an_answer() -> None:
    none, some = np.zeros((0, 4)), np.array([[0.0, 0, 10, 10]])
    assert (box_f1(none, none), box_f1(some, none), box_f1(none, some)) == (1, 0, 0)


def test_the_threshold_is_strict() -> None:
    half = np.array([[0.0, 0, 10, 5]])
    assert box_f1(half, np.array([[0.0, 0, 10, 10]])) == 0


def test_four_samples_of_the_paper() -> None:
    empty, left, whole = np.zeros((4, 4), bool), np.zeros((4, 4), bool), np.ones((4, 4), bool)
    left[:, :2] = True
    answers = [Answer(left, whole), Answer(whole, whole), Answer(empty, empty), Answer(left, empty)]
    scores = mask_scores(answers)
    assert scores["giou"] == 0.625
    assert (scores["no_target"], scores["target"], scores["targets_miou"]) == (0.5, 1.0, 0.75)
    assert scores["ciou"] == (8 + 16) / (16 + 16 + 0 + 8)
    assert (scores["precision_0.7"], scores["precision_0.9"]) == (0.5, 0.5)


def test_an_unreadable_answer_is_never_right() -> None:
    empty, whole = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    scores = mask_scores([Answer(empty, empty, readable=False), Answer(empty, whole, readable=False)])
    assert (scores["giou"], scores["no_target"], scores["target"]) == (0, 0, 0)


def test_what_is_not_there_is_not_scored() -> None:
    whole = np.ones((2, 2), bool)
    scores = mask_scores([Answer(whole, whole)])
    assert np.isnan(scores["no_target"])
    assert np.isnan(mask_scores([])["giou"])
