"""The loss of the next token: against a loop, over one process and several."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from granary.training.losses import next_token
from granary.training.losses.next_token import IGNORED, next_token_loss, targets_until


def slow_loss(logits: Tensor, targets: Tensor) -> Tensor:
    terms = []
    for text, words in zip(logits, targets.tolist(), strict=True):
        for scores, word in zip(text, words, strict=True):
            if word != IGNORED:
                terms.append(torch.log(sum(score.exp() for score in scores)) - scores[word])  # type: ignore[arg-type]
    return sum(terms) / len(terms)  # type: ignore[return-value]


def test_loss_and_gradient_equal_a_loop_over_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 7, (3, 5))
    targets[0, 2:], targets[2] = IGNORED, IGNORED
    loss, expected = next_token_loss(logits, targets), slow_loss(logits, targets)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][2].any()


def test_every_token_counts_alike_and_no_knowledge_is_ln_v() -> None:
    assert float(next_token_loss(torch.zeros(2, 4, 11), torch.ones(2, 4, dtype=torch.int64))) == pytest.approx(
        math.log(11)
    )
    none = torch.full((2, 4), IGNORED)
    logits = torch.randn(2, 4, 11, requires_grad=True)
    loss = next_token_loss(logits, none)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_precision_is_summed_in_float32() -> None:
    logits, targets = torch.randn(2, 4, 11), torch.ones(2, 4, dtype=torch.int64)
    assert next_token_loss(logits.bfloat16(), targets).dtype == torch.float32


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes whose texts have 3 and 6 tokens."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 6, 5), torch.randint(0, 5, (2, 6))
    targets[0, 3:] = IGNORED
    monkeypatch.setattr(next_token, "gathered", lambda rows: (torch.tensor([3, 6]), 0))
    halves = [next_token_loss(logits[n : n + 1], targets[n : n + 1]) for n in range(2)]
    monkeypatch.undo()
    torch.testing.assert_close(sum(halves) / 2, next_token_loss(logits, targets))


def test_targets_end_with_the_end_of_a_text() -> None:
    tokens = torch.tensor([[0, 5, 6, 1, 2], [0, 1, 2, 2, 2], [0, 5, 1, 9, 1], [0, 5, 6, 7, 8]])
    found = targets_until(tokens, 1, torch.tensor([True, True, True, True]))
    x = IGNORED
    assert found.tolist() == [[5, 6, 1, x], [1, x, x, x], [5, 1, x, x], [5, 6, 7, 8]]
    assert targets_until(tokens, 1, torch.tensor([True, False, True, True]))[1].tolist() == [x, x, x, x]
