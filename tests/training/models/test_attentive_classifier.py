"""The classifier of clips is a query that attends to all tokens, by an independent computation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.models.attentive_classifier import AttentiveClassifier


def slow(model: AttentiveClassifier, tokens: Tensor) -> Tensor:
    """Head by head, token by token."""
    width, logits = tokens.shape[2], []
    size = width // model.heads
    query = model.q(model.query)[0, 0]
    for row in tokens:
        keys, values = model.kv(F.layer_norm(row, [width], model.norm.weight, model.norm.bias)).split(width, dim=1)
        heads = []
        for head in range(model.heads):
            part = slice(head * size, (head + 1) * size)
            weights = torch.exp(keys[:, part] @ query[part] / size**0.5)
            heads.append((weights[:, None] * values[:, part]).sum(dim=0) / weights.sum())
        pooled = model.query[0, 0] + torch.cat(heads)
        normed = F.layer_norm(pooled, [width], model.mlp_norm.weight, model.mlp_norm.bias)
        logits.append(model.classifier(pooled + model.down(F.gelu(model.up(normed)))))
    return torch.stack(logits)


def test_logits_and_gradients_are_those_of_loops() -> None:
    torch.manual_seed(0)
    model = AttentiveClassifier(8, 5)
    assert model.heads == 4  # the largest part of 12 that divides 8
    tokens = torch.randn(3, 4, 8).requires_grad_()
    weights = torch.randn(3, 5)
    found, expected = model(tokens), slow(model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    wanted = [tokens, *model.parameters()]
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_order_of_tokens_says_nothing() -> None:
    model, tokens = AttentiveClassifier(8, 5), torch.randn(2, 4, 8)
    torch.testing.assert_close(model(tokens), model(tokens.flip(1)))
