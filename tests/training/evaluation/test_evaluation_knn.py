"""Weighted kNN against a double loop and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from measuring import measure
from sklearn.neighbors import KNeighborsClassifier

from granary.training.evaluation.features import Features
from granary.training.evaluation.protocols import knn
from granary.training.evaluation.protocols.knn import ranked_votes, votes
from granary.training.evaluation.tasks import Task


def random_features(n: int, m: int, width: int = 6, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    train = centres[labels] + torch.randn(n, width, generator=generator)
    return train, labels, torch.randn(m, width, generator=generator)


def looped(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, k: int, t: float, own: list[int] | None = None
) -> list[int]:
    found = []
    for j, query in enumerate(test.double()):
        cosines = [float(query @ row / (query.norm() * row.norm())) for row in train.double()]
        order = sorted((i for i in range(len(train)) if own is None or own[j] != i), key=lambda i: -cosines[i])
        tally: dict[int, float] = {}
        for i in order[:k]:
            tally[int(labels[i])] = tally.get(int(labels[i]), 0.0) + math.exp(cosines[i] / t)
        found.append(max(tally, key=lambda label: tally[label]))
    return found


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_every_k_equals_a_double_loop(temperature: float) -> None:
    train, labels, test = random_features(80, 30)
    found = votes(train, labels, test, 4, [1, 5, 20, 80], temperature)
    for k, predicted in found.items():
        assert predicted.tolist() == looped(train, labels, test, k, temperature)


def test_pieces_of_the_test_set_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test = random_features(60, 40)
    whole = votes(train, labels, test, 4, [7])[7]
    monkeypatch.setattr(knn, "CELLS", 300)
    assert votes(train, labels, test, 4, [7])[7].tolist() == whole.tolist()


def test_hot_votes_are_the_majority_of_scikit_learn() -> None:
    train, labels, test = random_features(90, 50, classes=2, seed=3)
    theirs = KNeighborsClassifier(9, metric="cosine").fit(train, labels).predict(test)
    assert votes(train, labels, test, 2, [9], 1e6)[9].tolist() == theirs.tolist()


def test_length_of_features_does_not_matter() -> None:
    train, labels, test = random_features(50, 20)
    lengths = torch.rand(50, 1) + 0.1
    scaled = votes(train * lengths, labels, test * 7, 4, [5])[5]
    assert scaled.tolist() == votes(train, labels, test, 4, [5])[5].tolist()


def test_a_picture_is_not_its_own_neighbour() -> None:
    train, labels, _ = random_features(60, 1)
    labels = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(9))  # noise: only cheating is right
    same = torch.arange(60)
    assert (votes(train, labels, train, 4, [1])[1] == labels).all()
    apart = votes(train, labels, train, 4, [1, 5], groups=(same, same))
    assert float((apart[1] == labels).float().mean()) < 0.6
    for k in (1, 5):
        assert apart[k].tolist() == looped(train, labels, train, k, 0.07, list(range(60)))


def test_more_neighbours_than_pictures_are_all_of_them_and_cold_weights_stay_finite() -> None:
    train, labels, test = random_features(12, 8)
    found = votes(train, labels, test, 4, [12, 500])
    assert found[12].tolist() == found[500].tolist()
    cold = votes(train, labels, test, 4, [12], 1e-4)[12]
    assert cold.tolist() == votes(train, labels, test, 4, [1])[1].tolist()
    assert np.isin(cold.numpy(), labels.numpy()).all()


def test_the_best_classes_are_those_with_most_votes_and_without_a_vote_none() -> None:
    train, labels, test = random_features(80, 30, classes=9)
    for k, ranked in ranked_votes(train, labels, test, 9, [1, 20], 0.5, top=5).items():
        assert ranked[:, 0].tolist() == votes(train, labels, test, 9, [k], 0.5)[k].tolist()
        for query, row in zip(test.double(), ranked.tolist(), strict=True):
            cosines = torch.nn.functional.cosine_similarity(query[None], train.double())
            tally = [0.0] * 9
            for i in cosines.argsort(descending=True)[:k].tolist():
                tally[int(labels[i])] += math.exp(float(cosines[i]) / 0.5)
            best = sorted((c for c in range(9) if tally[c]), key=lambda c: -tally[c])[:5]
            assert row == best + [-1] * (5 - len(best))


def test_one_of_five_is_right_where_the_class_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test = random_features(200, 60, classes=12, seed=4)
    truth = torch.randint(0, 12, (60,), generator=torch.Generator().manual_seed(1))
    ids = [[f"{name}{i}" for i in range(n)] for name, n in (("a", 200), ("b", 60))]
    sides = [
        Features(x[:, None], None, y, names, []) for x, y, names in ((train, labels, ids[0]), (test, truth, ids[1]))
    ]
    left: Any = {"left_out": {}}
    task = Task(*sides, classes=[str(n) for n in range(12)], shared=False, notes=[], settings=left)
    monkeypatch.setattr(knn, "train_and_test", lambda *_, **__: task)
    scores = measure(knn, "pixels", "data", device="cpu", k=[10])
    ranked = ranked_votes(train, labels, test, 12, [10], top=5)[10]
    assert scores["accuracy_top5"] == np.mean([int(y) in row for y, row in zip(truth, ranked.tolist(), strict=True)])
    assert scores["accuracy_top5"] > scores["accuracy"]
    assert scores["accuracy_top5.chance"] == 5 / 12
