"""The online probe against loops and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from tiny_shards import shapes, write_shards

from granary.curation.errors import UserError
from granary.training.models.vit import VisionTransformer
from granary.training.recipe import TrainRecipe
from granary.training.run.probe import RIDGE, TEMPERATURE, OnlineProbe, knn, ridge


def blobs(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (90,), generator=generator)
    centres = torch.randn(3, 10, generator=generator)
    x = centres[labels] + 1.2 * torch.randn(90, 10, generator=generator)
    return x[:60], labels[:60], x[60:], labels[60:]


def test_knn_is_a_weighted_vote() -> None:
    train, labels, test, _ = blobs()
    expected = []
    for row in test:
        cosine = [float(row @ other / row.norm() / other.norm()) for other in train]
        nearest = sorted(range(60), key=lambda i: -cosine[i])[:7]
        votes = [sum(np.exp(cosine[i] / TEMPERATURE) for i in nearest if labels[i] == c) for c in range(3)]
        expected.append(int(np.argmax(votes)))
    assert knn(train, labels, test, 3, 7).tolist() == expected


def test_one_neighbour_is_that_of_scikit_learn() -> None:
    train, labels, test, _ = blobs(1)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(train, labels).predict(test)
    assert knn(train, labels, test, 3, 1).tolist() == theirs.tolist()


def test_ridge_is_that_of_scikit_learn() -> None:
    train, labels, test, _ = blobs(2)
    mean, deviation = train.mean(dim=0), train.std(dim=0)
    theirs = RidgeClassifier(alpha=RIDGE * 60).fit((train - mean) / deviation, labels)
    found = ridge(train, labels, test, 3)
    assert found.tolist() == theirs.predict((test - mean) / deviation).tolist()


def test_probe_pictures_are_labelled_and_of_two_sides(tmp_path: Path) -> None:
    rows = shapes(60, 16)
    for row in rows[:9]:
        row["label"] = None
    run = str(write_shards(tmp_path, rows))
    tree = {"method": "ijepa", "steps": 1, "data": run, "out": "out", "holdout": 0.3}
    tree |= {"model": {"width": 8, "depth": 1, "heads": 1, "img_size": 16, "patch_size": 4}, "options": {"min_keep": 1}}
    recipe = TrainRecipe.model_validate({**tree, "probe": {"every": 1, "train": 500, "test": 500}})
    probe = OnlineProbe(recipe)
    assert len(probe.train[1]) + len(probe.test[1]) == 51
    assert probe.classes == ["circle", "cross", "square", "triangle"]
    scores = probe.scores(VisionTransformer(recipe.config()), torch.device("cpu"))
    assert set(scores) == {"knn", "linear"}
    assert all(0 <= score <= 1 for score in scores.values())
    for row in rows:
        row["label"] = "one"
    same = write_shards(tmp_path / "same", rows)
    with pytest.raises(UserError, match=r"have 1 classes; give probe.every 0"):
        OnlineProbe(recipe.model_copy(update={"data": [recipe.data[0].model_copy(update={"path": str(same)})]}))
