from __future__ import annotations

import math

import numpy as np
import pytest

from granary.training.evaluation.longtail import group_accuracy, longtail_accuracy, splits

COUNTS = np.array([1280, 101, 100, 20, 19, 5])


def test_the_bounds_of_the_splits_are_those_of_imagenet_lt() -> None:
    found = {name: np.flatnonzero(mask).tolist() for name, mask in splits(COUNTS).items()}
    assert found == {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def test_every_class_is_in_one_split() -> None:
    counts = np.random.default_rng(0).integers(0, 200, 50)
    assert (sum(mask.astype(int) for mask in splits(counts, 60, 30).values()) == 1).all()


def test_accuracy_of_the_splits_by_hand() -> None:
    labels = np.array([0, 0, 1, 2, 3, 4, 5, 5])
    predicted = np.array([0, 1, 1, 2, 0, 4, 0, 5])
    found = longtail_accuracy(predicted, labels, COUNTS)
    assert found == pytest.approx({"all": 62.5, "many": 200 / 3, "medium": 50.0, "few": 200 / 3})


def test_the_whole_is_the_mean_of_the_splits_by_size() -> None:
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 6, (2, 500))
    found = longtail_accuracy(predicted, labels, COUNTS)
    sizes = {name: mask[labels].sum() for name, mask in splits(COUNTS).items()}
    assert found["all"] == pytest.approx(sum(found[name] * n for name, n in sizes.items()) / 500)


def test_a_split_without_pictures_has_no_accuracy() -> None:
    assert math.isnan(longtail_accuracy(np.array([0]), np.array([0]), COUNTS)["few"])


def test_the_worst_group_by_hand() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 1])
    groups = ["grass", "grass", "snow", "snow", "grass"]
    found = group_accuracy(predicted, labels, list(zip(labels.tolist(), groups, strict=True)))
    assert found == pytest.approx({"all": 60.0, "groups": 50.0, "worst": 0.0})
    assert math.isnan(group_accuracy(np.array([]), np.array([]), [])["worst"])
