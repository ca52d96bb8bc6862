"""InfoNCE and the negative cosine against references written out from the papers, and on two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from slow_info_nce import slow_distance, slow_info_nce, slow_queue_info_nce
from torch import Tensor
from torch.nn.functional import normalize
from two_halves import halves

from granary.training.losses.pairs import info_nce, negative_cosine, queue_info_nce


def rows(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)


QUERIES, KEYS = rows(), rows(seed=1)
QUEUE = normalize(rows(9, seed=2).detach())


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_equals_the_equation_in_value_and_gradient(temperature: float) -> None:
    loss, reference = info_nce(QUERIES, KEYS, temperature), slow_info_nce(QUERIES, KEYS, temperature)
    torch.testing.assert_close(loss, reference, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(value, (QUERIES, KEYS)) for value in (loss, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_info_nce_of_a_queue_equals_the_equation_in_value_and_gradient(temperature: float) -> None:
    loss = queue_info_nce(QUERIES, KEYS, QUEUE, temperature)
    reference = slow_queue_info_nce(QUERIES, KEYS.detach(), QUEUE, temperature)
    torch.testing.assert_close(loss, reference, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(value, QUERIES) for value in (loss, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_the_cosine_is_the_distance_of_byol_and_its_gradient() -> None:
    distance, reference = 2 + 2 * negative_cosine(QUERIES, KEYS), slow_distance(QUERIES, KEYS.detach())
    torch.testing.assert_close(distance, reference, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(value, QUERIES) for value in (distance, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_there_is_no_gradient_through_targets() -> None:
    for loss in (queue_info_nce(QUERIES, KEYS, QUEUE, 0.2), negative_cosine(QUERIES, KEYS)):
        of_queries, of_keys = torch.autograd.grad(loss, (QUERIES, KEYS), allow_unused=True)
        assert of_queries.abs().max() > 1e-3
        assert of_keys is None


def test_constant_rows_have_the_loss_of_a_guess() -> None:
    constant, queue = torch.ones(6, 4), torch.full((9, 4), 0.5)
    assert float(info_nce(constant, 3 * constant, 0.1)) == pytest.approx(math.log(6), abs=1e-6)
    assert float(queue_info_nce(constant, 3 * constant, queue, 0.1)) == pytest.approx(math.log(10), abs=1e-6)


def test_the_cosine_of_equal_and_of_opposite_rows_ends_its_range() -> None:
    assert float(negative_cosine(KEYS, 3 * KEYS).detach()) == pytest.approx(-1)
    assert float(negative_cosine(KEYS, -KEYS).detach()) == pytest.approx(1)


def test_lengths_do_not_matter() -> None:
    scale = torch.rand(6, 1, dtype=torch.float64) + 0.1
    for loss in (
        lambda q, k: info_nce(q, k, 0.2),
        lambda q, k: queue_info_nce(q, k, QUEUE, 0.2),
        negative_cosine,
    ):
        torch.testing.assert_close(loss(scale * QUERIES, 7 * KEYS), loss(QUERIES, KEYS))
        assert not torch.isclose(loss(QUERIES, KEYS.flip(0)), loss(QUERIES, KEYS))


def test_they_are_computed_in_float32() -> None:
    queries, keys, queue = (tensor.detach().bfloat16() for tensor in (QUERIES, KEYS, QUEUE))
    for loss in (
        lambda q, k: info_nce(q, k, 0.05),
        lambda q, k: queue_info_nce(q, k, queue.float(), 0.05),
        negative_cosine,
    ):
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(queries, keys)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(queries.float(), keys.float()))


def sharp(queries: Tensor, keys: Tensor) -> Tensor:
    return info_nce(queries, keys, 0.2)


@pytest.mark.slow
def test_two_processes_have_loss_and_gradients_of_one(tmp_path: Path) -> None:
    loss = sharp(QUERIES, KEYS)
    ((value, gradients),) = halves([sharp], [QUERIES, KEYS], tmp_path)
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    for ours, whole in zip(gradients, torch.autograd.grad(loss, (QUERIES, KEYS)), strict=True):
        np.testing.assert_allclose(ours, whole.numpy(), atol=1e-12, rtol=1e-9)
