"""LARS against numpy, and against torch's SGD where it is that."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from granary.training.run.lars import LARS, follow_in_one_pass, follow_op_by_op

Array = NDArray[np.float64]


def written_out(
    weights: list[Array], gradients: list[list[Array]], lrs: list[float], momentum: float, trust: float, decay: float
) -> list[Array]:
    """The steps of the docstring, matrix by matrix, in float64."""
    weights, velocities = [w.copy() for w in weights], [np.zeros_like(w) for w in weights]
    for lr, at_step in zip(lrs, gradients, strict=True):
        for number, gradient in enumerate(at_step):
            step = gradient + decay * weights[number]
            above, below = np.sqrt((weights[number] ** 2).sum()), np.sqrt((step**2).sum())
            if above > 0 and below > 0:
                step = step * trust * above / below
            velocities[number] = momentum * velocities[number] + step
            weights[number] = weights[number] - lr * velocities[number]
    return weights


def drawn(shapes: list[tuple[int, ...]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def stepped(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for number, at_step in enumerate(gradients):
        for group in optimiser.param_groups:
            group["lr"] = LRS[number]
        for parameter, gradient in zip(parameters, at_step, strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()


LRS = [0.5, 1.0, 2.0, 1.5, 0.1]  # as under warmup and decay
SHAPES = [(4, 3), (2, 3, 3, 3), (5, 1)]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_steps_equal_those_written_out_in_numpy(decay: float) -> None:
    start, gradients = drawn(SHAPES, 0), [drawn(SHAPES, seed) for seed in range(1, 6)]
    parameters = [nn.Parameter(w.clone()) for w in start]
    optimiser = LARS([{"params": parameters, "weight_decay": decay}], 1.0, momentum=0.9, trust=0.02)
    stepped(optimiser, parameters, gradients)
    expected = written_out(
        [w.double().numpy() for w in start],
        [[g.double().numpy() for g in gs] for gs in gradients],
        LRS,
        0.9,
        0.02,
        decay,
    )
    for parameter, weights in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratios", [None, [1e-7, 1.0, 3e3]])
def test_one_pass_over_a_weight_is_what_each_operation_does(ratios: list[float] | None) -> None:
    factors = None if ratios is None else list(torch.tensor(ratios).unbind())
    one, two = ([drawn(SHAPES, seed) for seed in range(3)] for _ in range(2))
    follow_in_one_pass(*one, factors, 0.9, 0.3)
    follow_op_by_op(*two, factors, 0.9, 0.3)
    for weights, expected in zip([*one[0], *one[2]], [*two[0], *two[2]], strict=True):
        torch.testing.assert_close(weights, expected)


def test_what_is_not_adapted_is_torchs_sgd() -> None:
    start, gradients = drawn(SHAPES, 0), [drawn(SHAPES, seed) for seed in range(1, 6)]
    ours, theirs = ([nn.Parameter(w.clone()) for w in start] for _ in range(2))
    stepped(LARS([{"params": ours, "weight_decay": 0.1, "adapted": False}], 1.0, momentum=0.8), ours, gradients)
    stepped(torch.optim.SGD(theirs, 1.0, momentum=0.8, weight_decay=0.1), theirs, gradients)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


def test_the_size_of_a_gradient_does_not_matter_and_that_of_the_step_follows_the_weights() -> None:
    """Without decay and momentum a step has the length lr trust |w|."""
    moved = []
    for factor in (1e-4, 1.0, 1e4):
        parameter = nn.Parameter(drawn([(6, 4)], 3)[0])
        before = parameter.detach().clone()
        parameter.grad = factor * drawn([(6, 4)], 4)[0]
        LARS([{"params": [parameter]}], 0.5, momentum=0.0, trust=0.01).step()
        moved.append(parameter.detach() - before)
        torch.testing.assert_close(moved[-1].norm(), 0.5 * 0.01 * before.norm())
    torch.testing.assert_close(moved[0], moved[2], rtol=1e-4, atol=1e-7)


def test_weights_and_gradients_of_norm_zero_are_moved_as_by_sgd() -> None:
    zero, still = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.ones(3, 2))
    zero.grad, still.grad = torch.full((3, 2), 0.25), torch.zeros(3, 2)
    LARS([{"params": [zero, still]}], 2.0).step()
    assert torch.equal(zero.detach(), torch.full((3, 2), -0.5))
    assert torch.equal(still.detach(), torch.ones(3, 2))


def test_parameters_without_a_gradient_stay_and_have_no_state() -> None:
    moved, left = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([{"params": [moved, left]}], 1.0)
    loss = optimiser.step(lambda: _backward(moved))
    assert loss == 4.0
    assert not torch.equal(moved.detach(), torch.ones(2, 2))
    assert torch.equal(left.detach(), torch.ones(2, 2))
    assert list(optimiser.state) == [moved]


def _backward(parameter: nn.Parameter) -> float:
    loss = parameter.square().sum()
    loss.backward()
    return float(loss.detach())


def test_state_goes_on_where_it_was() -> None:
    start, gradients = drawn(SHAPES, 0), [drawn(SHAPES, seed) for seed in range(1, 6)]
    whole = [nn.Parameter(w.clone()) for w in start]
    optimiser: Any = LARS([{"params": whole, "weight_decay": 0.1}], 1.0)
    stepped(optimiser, whole, gradients[:2])
    parts = [nn.Parameter(w.detach().clone()) for w in whole]
    second = LARS([{"params": parts, "weight_decay": 0.1}], 1.0)
    second.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    stepped(optimiser, whole, gradients[2:])
    stepped(second, parts, gradients[2:])
    assert all(torch.equal(one, two) for one, two in zip(whole, parts, strict=True))
