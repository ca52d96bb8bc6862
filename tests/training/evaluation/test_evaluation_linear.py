"""Linear probes against scikit-learn, autograd and a leak of the test set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge

from granary.curation.errors import UserError
from granary.training.evaluation.features import Features
from granary.training.evaluation.heads import LinearHead, logistic_heads, mlp_heads, ridge_heads, sgd_heads
from granary.training.evaluation.protocols.linear import Input, inputs, probe
from granary.training.evaluation.tasks import Task


def blobs(n: int = 240, width: int = 8, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(77))
    scale = torch.linspace(0.2, 5, width)
    return (centres[labels] + 1.3 * torch.randn(n, width, generator=generator)) * scale + 3, labels


def standardised(x: torch.Tensor) -> np.ndarray:
    return ((x.double() - x.double().mean(dim=0)) / x.double().std(dim=0)).numpy()


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_logistic_regression_is_that_of_scikit_learn(penalty: float) -> None:
    x, y = blobs()
    theirs = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=5000).fit(standardised(x), y)
    head = logistic_heads(x, y, 3, [penalty], iterations=1000)[0]
    weight = head.weight - head.weight.mean(dim=1, keepdim=True)  # both are right up to a common shift
    np.testing.assert_allclose(weight.T.numpy(), theirs.coef_ - theirs.coef_.mean(axis=0), atol=2e-4)
    other = blobs(100, seed=5)[0]
    moved = ((other.double() - x.double().mean(dim=0)) / x.double().std(dim=0)).numpy()
    assert head.predict(other).tolist() == theirs.predict(moved).tolist()


def test_ridge_is_that_of_scikit_learn_for_every_penalty() -> None:
    x, y = blobs(classes=4)
    penalties = [1.0, 1e-2, 1e-5]
    for penalty, head in zip(penalties, ridge_heads(x, y, 4, penalties), strict=True):
        theirs = Ridge(alpha=penalty * len(x)).fit(standardised(x), F.one_hot(y, 4).double().numpy())
        np.testing.assert_allclose(head.weight.T.numpy(), theirs.coef_, atol=1e-9)
        np.testing.assert_allclose(head.bias.numpy(), theirs.intercept_, atol=1e-9)


def test_ridge_bears_more_features_than_pictures_and_constant_ones() -> None:
    x = torch.cat([torch.randn(10, 30, generator=torch.Generator().manual_seed(0)), torch.ones(10, 2)], dim=1)
    y = torch.arange(10) % 2
    head = ridge_heads(x, y, 2, [1e-3])[0]
    assert torch.isfinite(head.weight).all()
    assert head.predict(x).tolist() == y.tolist()


def test_each_head_of_sgd_is_trained_as_torch_would_alone() -> None:
    x, y = blobs(200)
    x = x / 5
    rates, steps = [1e-3, 1e-1, 1.0], 30
    heads = sgd_heads(x, y, 3, rates, steps, seed=4)
    for rate, head in zip(rates, heads, strict=True):
        generator = torch.Generator().manual_seed(4)
        layer = torch.nn.Linear(8, 3)
        with torch.no_grad():
            layer.weight.copy_(0.01 * torch.randn(8, 1, 3, generator=generator)[:, 0].T)
            layer.bias.zero_()
        optimiser = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
        for step in range(steps):  # 200 pictures: one batch of 128 in each pass
            rows = torch.randperm(200, generator=generator)[:128]
            optimiser.param_groups[0]["lr"] = rate * 128 / 256 * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            F.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimiser.step()
        torch.testing.assert_close(head.weight, layer.weight.detach().T, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(head.bias, layer.bias.detach(), atol=2e-5, rtol=1e-4)


def task_of(layers: int = 4, class_token: bool = True, informative: int = 0) -> Task:
    """Return a task in which only one layer, counted from the first, tells the classes apart."""

    def part(n: int, seed: int, name: str) -> Features:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (n,), generator=generator)
        cls = torch.randn(n, layers, 6, generator=generator)
        cls[:, informative] += 2.5 * (2 * labels[:, None] - 1)
        mean = torch.randn(n, 6, generator=generator) if class_token else None
        return Features(cls, mean, labels, [f"{name}{i}" for i in range(n)], [])

    return Task(part(300, 1, "train"), part(200, 2, "test"), ["a", "b"], False, [], {"left_out": {}})


def test_the_grid_finds_the_layers_that_help() -> None:
    task = task_of(informative=0)
    best, predicted = probe(task, (1, 4), [1e-2, 1e-4], ridge_heads)
    assert best.input.layers == 4
    assert float((predicted == task.test.labels).float().mean()) > 0.95
    assert probe(task_of(informative=3), (1, 4), [1e-2, 1e-4], ridge_heads)[0].score > 0.9


def test_test_labels_decide_nothing() -> None:
    task = task_of()
    grid = [1.0, 1e-2, 1e-4]
    best, predicted = probe(task, (1, 4), grid, ridge_heads)
    turned = Features(task.test.cls, task.test.mean, 1 - task.test.labels, task.test.ids, [])
    again, same = probe(Task(task.train, turned, ["a", "b"], False, [], {"left_out": {}}), (1, 4), grid, ridge_heads)
    assert (best, predicted.tolist()) == (again, same.tolist())


def test_the_held_out_part_is_not_trained_on() -> None:
    seen: list[tuple[int, list[float]]] = []

    def fit(x: torch.Tensor, y: torch.Tensor, classes: int, grid: Sequence[float]) -> list[LinearHead]:
        seen.append((len(x), list(grid)))
        return ridge_heads(x, y, classes, grid)

    probe(task_of(), (1,), [1e-2, 1e-3], fit, validation=0.2, refit=False)
    assert all(200 < count < 280 and len(grid) == 2 for count, grid in seen)
    best, _ = probe(task_of(), (1,), [1e-2, 1e-3], fit, validation=0.2, refit=True)
    assert seen[-1] == (300, [best.point])


def test_inputs_are_only_what_the_model_has() -> None:
    assert list(inputs(task_of(4).train, (1, 4))) == [Input(1, False), Input(1, True), Input(4, False), Input(4, True)]
    assert list(inputs(task_of(2, class_token=False).train, (1, 4))) == [Input(1, False), Input(2, False)]
    features = task_of(4).train
    joined = Input(2, True).of(features)
    assert features.mean is not None
    assert torch.equal(joined, torch.cat([features.cls[:, 2], features.cls[:, 3], features.mean], dim=1))


def test_too_few_pictures_to_hold_some_out() -> None:
    task = task_of()
    few = task.train.rows(torch.arange(300) < 1)
    with pytest.raises(UserError, match="too few to hold some out"):
        probe(Task(few, task.test, ["a", "b"], False, [], {}), (1,), [1.0], ridge_heads)


# -- an MLP ------------------------------------------------------------------------------------------------------------


def quadrants(n: int = 600, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points whose class is the sign of a product: a linear classifier can only guess."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([5.0, 0.1]) + 3, (x.prod(dim=1) > 0).long()


def test_an_mlp_learns_what_no_linear_head_can() -> None:
    (x, y), (other, truth) = quadrants(), quadrants(400, seed=1)
    linear = ridge_heads(x, y, 2, [1e-3])[0]
    (head,) = mlp_heads(x, y, 2, [1e-2], iterations=400, hidden=32)
    assert float((linear.predict(other) == truth).float().mean()) < 0.6
    assert float((head.predict(other) == truth).float().mean()) > 0.95


def test_each_mlp_is_trained_as_torch_would_alone() -> None:
    """200 pictures: 20 say which pass is best, 180 teach, in one batch of 128 in each pass."""
    x, y = blobs(200)
    rates = [1e-3, 3e-2]
    heads = mlp_heads(x, y, 3, rates, iterations=5, hidden=7, seed=4)
    for rate, head in zip(rates, heads, strict=True):
        generator = torch.Generator().manual_seed(4)
        order = torch.randperm(200, generator=generator)
        held, taught = order[:20], order[20:]
        mean, std = x[taught].mean(dim=0), x[taught].std(dim=0)
        network = torch.nn.Sequential(torch.nn.Linear(8, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
        with torch.no_grad():
            network[0].weight.copy_(torch.randn(8, 7, generator=generator).T * math.sqrt(2 / 8))
            network[2].weight.copy_(torch.randn(7, 3, generator=generator).T / math.sqrt(7))
            network[0].bias.zero_()
            network[2].bias.zero_()
        optimiser, passes = torch.optim.AdamW(network.parameters(), rate), []
        for _ in range(5):
            rows = taught[torch.randperm(180, generator=generator)[:128]]
            optimiser.zero_grad()
            F.cross_entropy(network((x[rows] - mean) / std), y[rows]).backward()
            optimiser.step()
            logits = network((x - mean) / std).detach()
            right = float((logits[held].argmax(dim=1) == y[held]).double().mean())
            passes.append((right, -float(F.cross_entropy(logits[held], y[held])), logits))
        best = max(passes, key=lambda answer: answer[:2])[2]
        torch.testing.assert_close(head.logits(x), best, atol=2e-4, rtol=1e-3)


def test_an_mlp_that_only_learns_by_heart_is_stopped() -> None:
    """Labels without any rule: what says which pass is best is not trained on, and ten passes gain nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 40, generator=generator), torch.randint(0, 2, (300,), generator=generator)
    (early,), (late,) = (mlp_heads(x, y, 2, [3e-3], steps, hidden=64) for steps in (2_000, 100_000))
    assert torch.equal(early.logits(x), late.logits(x))
    assert float((early.predict(x) == y).float().mean()) < 0.95


def test_a_probe_takes_mlps_in_the_place_of_linear_heads() -> None:
    task = task_of(informative=3)
    best, predicted = probe(
        task, (1,), [1e-3, 1e-2], lambda x, y, k, grid: mlp_heads(x, y, k, grid, 100, 16), refit=False
    )
    assert best.point in (1e-3, 1e-2)
    assert float((predicted == task.test.labels).float().mean()) > 0.95
