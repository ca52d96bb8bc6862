"""The parts of XRM against loops in numpy, and the hand cases of the paper's definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from slow_xrm import chance_of_flip, loss_and_gradient

from granary.training.losses.cross_risk import balanced_loss, cross_mistakes, flip_chance


@pytest.mark.parametrize("labels", [[0, 1, 1, 2, 2, 2, 0, 1], [1] * 8, [0, -1, 2, 2, -1, 0, 0, 0]])
def test_loss_and_gradient_are_those_written_out(labels: list[int]) -> None:
    logits = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = balanced_loss(logits, torch.tensor(labels))
    loss.backward()
    expected, gradient = loss_and_gradient(logits.detach().numpy(), np.array(labels))
    assert float(loss.detach()) == pytest.approx(expected)
    np.testing.assert_allclose(logits.grad, gradient, atol=1e-12)


def test_the_loss_is_the_sum_of_the_class_means_however_many_examples_a_class_has() -> None:
    logits = torch.tensor([[0.0, 0.0]] * 9 + [[0.0, 2.0]])
    loss = balanced_loss(logits, torch.tensor([0] * 9 + [1]))
    assert float(loss) == pytest.approx(math.log(2) + math.log(1 + math.exp(-2)), abs=1e-6)


@pytest.mark.parametrize(
    ("chances", "flip"),
    [([0.75, 0.25], 0.5), ([2 / 3, 1 / 6, 1 / 6], 0.5), ([0.55, *[0.05] * 9], 0.5), ([0.25] * 4, 0), ([1, 1e-30], 1)],
)
def test_the_chance_of_a_flip_is_0_at_chance_level_and_1_at_certainty(chances: list[float], flip: float) -> None:
    logits = torch.tensor([chances], dtype=torch.float64).log()
    assert float(flip_chance(logits)) == pytest.approx(flip, abs=1e-9)
    assert float(flip_chance(logits)) == pytest.approx(chance_of_flip(logits[0].numpy()), abs=1e-9)


def test_either_mistake_makes_the_environment() -> None:
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    first, second = torch.tensor([right, right, wrong, wrong]), torch.tensor([right, wrong, right, wrong])
    assert cross_mistakes(first, second, torch.zeros(4, dtype=torch.int64)).tolist() == [0, 1, 1, 1]
