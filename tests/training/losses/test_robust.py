"""GroupDRO against numpy, its closed forms, and what it is for: the worst group of a toy with a shortcut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.losses.robust import group_dro, group_means


def test_the_worked_example_of_the_released_code() -> None:
    losses, groups = torch.tensor([0.5, 2.0, 1.5]), torch.tensor([0, 1, 0])  # means 1 and 2
    loss, weights = group_dro(losses, groups, torch.ones(2), 0.1)
    torch.testing.assert_close(weights, torch.tensor([0.47502, 0.52498]), atol=1e-5, rtol=0)
    torch.testing.assert_close(loss, weights[0] * 1 + weights[1] * 2)


def test_value_weights_and_gradient_equal_a_loop_over_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(40, generator=generator, dtype=torch.float64) * 3
    groups, start = torch.randint(-1, 4, (40,), generator=generator), np.array([0.4, 0.1, 0.3, 0.2, 0.7])
    losses.requires_grad_()  # group 4 has no picture, -1 is none
    loss, weights = group_dro(losses, groups, torch.from_numpy(start), 0.3)
    q, means, gradient = start.copy(), np.zeros(5), np.zeros(40)
    for g in range(4):
        means[g] = losses.detach().numpy()[groups.numpy() == g].mean()
        q[g] = start[g] * np.exp(0.3 * means[g])
    q = q / q.sum()
    for i, g in enumerate(groups.tolist()):
        gradient[i] = 0 if g < 0 else q[g] / int((groups == g).sum())
    np.testing.assert_allclose(weights.numpy(), q, rtol=1e-12)
    np.testing.assert_allclose(loss.item(), (q * means).sum(), rtol=1e-12)
    np.testing.assert_allclose(torch.autograd.grad(loss, losses)[0].numpy(), gradient, rtol=1e-12)


def test_a_group_that_is_not_in_the_batch_keeps_its_weight_beside_the_others() -> None:
    before = torch.tensor([0.2, 0.3, 0.5])
    _, after = group_dro(torch.zeros(2), torch.tensor([0, 2]), before, 1.0)  # a loss of 0 moves nothing
    torch.testing.assert_close(after, before)
    _, after = group_dro(torch.tensor([1.0]), torch.tensor([0]), before, 1.0)
    torch.testing.assert_close(after[1] / after[2], before[1] / before[2])


def test_pictures_without_a_group_and_batches_of_them_alone_have_no_part() -> None:
    losses = torch.tensor([torch.inf, 1.0], requires_grad=True)
    loss, weights = group_dro(losses, torch.tensor([-1, 1]), torch.tensor([0.5, 0.5]), 0.0)
    assert loss == 0.5
    assert torch.equal(torch.autograd.grad(loss, losses)[0], torch.tensor([0.0, 0.5]))
    loss, weights = group_dro(losses, torch.tensor([-1, -1]), weights, 1.0)
    assert loss == 0
    assert torch.equal(weights, torch.tensor([0.5, 0.5]))
    assert torch.equal(group_means(losses, torch.tensor([-1, -1]), 2), torch.zeros(2))


# -- what it is for --------------------------------------------------------------------------------------------------


def toy(seed: int, agreement: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (4000, 20), label and attribute: the attribute, three times as large, agrees with the label so often."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 4000)
    a = np.where(rng.random(4000) < agreement, y, 1 - y)
    x = rng.normal(size=(4000, 20))
    x[:, 0] += 2 * y - 1
    x[:, 1] += 3 * (2 * a - 1)
    return torch.from_numpy(x).float(), torch.from_numpy(y), torch.from_numpy(a)


def worst_group(seed: int, robust: bool) -> float:
    x, y, a = toy(seed, 0.95)
    layer, weights = nn.Linear(20, 2, bias=False), torch.ones(4)
    nn.init.zeros_(layer.weight)
    for _ in range(1500):
        if robust:
            losses = F.cross_entropy(layer(x), y, reduction="none")
            loss, weights = group_dro(losses, 2 * y + a, weights, 0.1)
        else:
            loss = F.cross_entropy(layer(x), y)
        (gradient,) = torch.autograd.grad(loss, [layer.weight])
        with torch.no_grad():
            layer.weight -= 0.1 * gradient
    x, y, a = toy(seed + 100, 0.5)
    right = (layer(x).argmax(dim=1) == y).float()
    return float(group_means(right, 2 * y + a, 4).min())


@pytest.mark.parametrize(("robust", "expected"), [(False, 0.335), (True, 0.813)])
def test_the_worst_group_of_a_linear_toy_is_as_measured_elsewhere(robust: bool, expected: float) -> None:
    """Figures of an implementation in numpy, means of three seeds of its own draws; here of one."""
    assert worst_group(0, robust) == pytest.approx(expected, abs=0.05)
