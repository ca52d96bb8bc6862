"""The attentive probe: its pooling written out, what it finds that a mean does not, and its determinism."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datasets import Value
from measuring import measure
from tiny_shards import shapes, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.evaluation.heads import ridge_heads
from granary.training.evaluation.protocols import attentive
from granary.training.evaluation.protocols.attentive import AttentiveOptions, trained
from granary.training.models.attentive_probe import AttentiveProbe


def flagged(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return tokens of which one has a flag and the class; the others have a class of their own, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    tokens = torch.zeros(n, 8, 8)
    tokens[:, :, 0] = 2.0 * torch.randint(0, 2, (n, 8), generator=generator) - 1
    place = torch.randint(0, 8, (n,), generator=generator)
    tokens[torch.arange(n), place, 0] = 2.0 * labels - 1
    tokens[torch.arange(n), place, 1] = 2
    return tokens + 0.05 * torch.randn(n, 8, 8, generator=generator), labels


def test_the_pooling_is_attention_of_one_query_head_by_head() -> None:
    torch.manual_seed(0)
    probe, tokens = AttentiveProbe(8, 3, 2), torch.randn(2, 5, 8)
    torch.nn.init.normal_(probe.norm.weight)
    torch.nn.init.normal_(probe.query)
    for picture, logits in zip(tokens, probe(tokens), strict=True):
        x = torch.nn.functional.layer_norm(picture, (8,), probe.norm.weight, probe.norm.bias)
        projected = x @ probe.keys_values.weight.T + probe.keys_values.bias
        keys, values, pooled = projected[:, :8], projected[:, 8:], []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = [math.exp(float((probe.query[head, 0] @ key).detach()) / 2) for key in keys[:, part]]
            weights = torch.tensor(scores) / sum(scores)
            pooled.append((weights[:, None] * values[:, part]).sum(dim=0))
        torch.testing.assert_close(logits, probe.classifier(torch.cat(pooled)), atol=1e-5, rtol=1e-4)


def test_the_order_of_tokens_does_not_matter_and_heads_divide_the_width() -> None:
    probe, tokens = AttentiveProbe(6, 3, 4), torch.randn(2, 5, 6)
    assert probe.heads == 2
    torch.testing.assert_close(probe(tokens), probe(tokens[:, torch.randperm(5)]))


def test_it_finds_the_token_that_tells_where_the_mean_hides_it() -> None:
    (tokens, labels), (test, truth) = flagged(600, 0), flagged(300, 1)
    best = trained(tokens, labels, 2, AttentiveOptions(iterations=150, lrs=[1e-2]), 0)
    assert float((best.probe.predicted(test) == truth).double().mean()) > 0.97
    (mean,) = ridge_heads(tokens.mean(dim=1), labels, 2, [1e-3])
    assert float((mean.predict(test.mean(dim=1)) == truth).double().mean()) < 0.8


def test_a_seed_decides_everything() -> None:
    tokens, labels = flagged(100, 0)
    options = AttentiveOptions(iterations=6)
    one, two, other = (trained(tokens, labels, 2, options, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.probe.parameters(), two.probe.parameters(), strict=True))
    assert not torch.equal(one.probe.query, other.probe.query)
    before = torch.random.get_rng_state()
    trained(tokens, labels, 2, options, 0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [{**row, "split": "test" if n % 4 == 0 else "train"} for n, row in enumerate(shapes(80, 16))]
    folder: Path = write_shards(tmp_path_factory.mktemp("run"), rows, extra={"split": Value("string")})
    return str(folder)


def test_it_reads_all_tokens_of_a_model(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "random:tiny?img_size=16&patch_size=8"
    scores = measure(attentive, model, run, device="cpu", iterations=4, pictures=30)
    assert scores["accuracy.tokens"] == 5  # class token and four patches
    assert (scores["accuracy.train"], scores["accuracy.test"], scores["accuracy.chance"]) == (30, 20, 0.25)
    assert scores["accuracy.learning_rate"] in AttentiveOptions().lrs
    monkeypatch.setattr(attentive, "ROOM", 10 * 4 * 5 * 192)
    with pytest.raises(UserError, match=r"options\.pictures: 30 .* take 115,200 bytes; give at most 10"):
        measure(attentive, model, run, device="cpu", pictures=30)
