"""The moving average of a model: weights, running statistics, counters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from granary.training.models.average import average


def model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU())


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_weights_and_running_statistics_are_averaged_and_counters_copied() -> None:
    target, source = model(0), model(1)
    source(torch.randn(8, 3, 6, 6) * 3 + 1)
    before, given = snapshot(target), snapshot(source)
    average(target, source, 0.9)
    for name, moved in target.state_dict().items():
        counted = name.endswith("num_batches_tracked")
        expected = given[name] if counted else 0.9 * before[name] + 0.1 * given[name]
        torch.testing.assert_close(moved, expected, msg=lambda m, n=name: f"{n}: {m}")
    assert all(torch.equal(tensor, given[name]) for name, tensor in source.state_dict().items())


def test_momentum_one_keeps_the_target_and_zero_gives_the_source() -> None:
    target, source = model(0), model(1)
    source(torch.randn(8, 3, 6, 6))
    before = snapshot(target)
    average(target, source, 1.0)
    kept = {name: tensor for name, tensor in target.state_dict().items() if tensor.is_floating_point()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())
    average(target, source, 0.0)
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, source.state_dict()[name])


def test_a_target_in_evaluation_mode_has_statistics_that_fit_its_weights() -> None:
    """A teacher that gathers no statistics itself, and follows a student that stands still, becomes the student."""
    target, source = model(0).eval(), model(1)
    for _ in range(30):
        source(torch.randn(16, 3, 6, 6) * 2 - 1)
    for _ in range(200):
        average(target, source, 0.9)
    pixels = torch.randn(4, 3, 6, 6) * 2 - 1
    torch.testing.assert_close(target(pixels), copy.deepcopy(source).eval()(pixels), atol=1e-5, rtol=1e-4)


def test_weights_without_gradient_and_frozen_targets_move_too() -> None:
    target, source = model(0).requires_grad_(False), model(1)
    average(target, source, 0.5)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.grad_fn is None for parameter in target.parameters())
