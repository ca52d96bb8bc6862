"""Facts about the losses of the fine-tuning and the choice of its texts."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from granary.training.data.pairs import Negative
from granary.training.losses import captions as dci

GOLDEN = torch.tensor([[5.0, 1.0, 6.0, 0.0], [2.0, 3.0, 9.0, 4.0]])  # B = 2, N = 2


CAPTIONS = tuple(f"c{at}" for at in range(6))
NEGATIVES = (Negative("basic", "b0", 7.0), Negative("swaps", "s0", 1.0), Negative("swaps", "s1", 3.0))


@pytest.mark.parametrize(
    ("pooling", "matching"),
    [
        ("mean", [[3.0, 3.0], [2.5, 6.5]]),
        ("hardest", [[1.0, 6.0], [3.0, 4.0]]),
        ("hardest_as_published", [[5.0, 6.0], [3.0, 9.0]]),
    ],
)
def test_pooling_of_the_sheet(pooling: dci.Pooling, matching: list[list[float]]) -> None:
    assert dci.pool_captions(GOLDEN, 2, pooling).tolist() == matching


@pytest.mark.parametrize(
    ("pooling", "positives"), [("mean", [3.0, 6.5]), ("hardest", [1.0, 4.0]), ("hardest_as_published", [1.0, 4.0])]
)
def test_positives_of_the_negative_loss(pooling: dci.Pooling, positives: list[float]) -> None:
    """Only the released CLIP loss pools by maximum first; the negative term takes the minimum of the positives."""
    assert dci.pool_positives(GOLDEN, 2, pooling).tolist() == positives


def test_the_losses_as_published_of_the_sheet() -> None:
    matching = dci.pool_captions(GOLDEN, 2, "hardest_as_published")
    assert dci.matching_loss(matching).item() == pytest.approx(0.3728, abs=5e-5)
    positives = dci.pool_positives(GOLDEN, 2, "hardest_as_published")
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-4)) + 2 * math.log(2)) / 4
    assert dci.negative_loss(positives, torch.zeros(2)).item() == pytest.approx(expected)


def test_one_caption_needs_no_pooling() -> None:
    logits = torch.randn(5, 5)
    for pooling in ("mean", "hardest", "hardest_as_published"):
        assert torch.equal(dci.pool_captions(logits, 1, pooling), logits)  # type: ignore[arg-type]


def test_the_clip_loss_is_symmetric_and_starts_at_ln_n() -> None:
    logits = torch.randn(7, 7, dtype=torch.float64)
    torch.testing.assert_close(dci.matching_loss(logits), dci.matching_loss(logits.T))
    assert dci.matching_loss(torch.zeros(64, 64)).item() == pytest.approx(math.log(64))


def test_the_clip_loss_of_the_golden_similarities() -> None:
    """S = [[0.8, 0], [0.96, 0.8]] at temperature 0.07: see clip-siglip.md."""
    similarities = torch.tensor([[0.8, 0.0], [0.96, 0.8]], dtype=torch.float64)
    assert dci.matching_loss(similarities / 0.07).item() == pytest.approx(1.1912904354682, abs=1e-12)


def test_the_negative_loss_is_the_mean_cross_entropy_of_both_columns() -> None:
    positives, negatives = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    logits = torch.stack([positives, negatives], dim=1)
    target = torch.tensor([[1.0, 0.0]] * 9, dtype=torch.float64)
    loss = dci.negative_loss(positives, negatives)
    torch.testing.assert_close(loss, binary_cross_entropy_with_logits(logits, target))
    softplus = [
        (math.log1p(math.exp(-p)) + math.log1p(math.exp(n))) / 2 for p, n in zip(positives, negatives, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(softplus) / 9)
    assert dci.negative_loss(torch.zeros(4), torch.zeros(4)).item() == pytest.approx(math.log(2))


def test_without_negatives_the_loss_is_zero_and_has_a_gradient() -> None:
    positives = torch.zeros(0, requires_grad=True)
    loss = dci.negative_loss(positives, torch.zeros(0))
    loss.backward()
    assert loss.item() == 0


def test_hardest_gradients_reach_the_hardest_caption_only() -> None:
    """As published, the positive that learns is the easiest caption; otherwise the hardest."""
    for pooling, learns in (("hardest", 1), ("hardest_as_published", 0)):
        logits = GOLDEN.clone().requires_grad_()
        dci.pool_captions(logits, 2, pooling).diagonal()[0].backward()  # type: ignore[arg-type]
        assert logits.grad is not None
        assert logits.grad.nonzero().tolist() == [[0, learns]]


def test_first_takes_the_first_and_pick5_five() -> None:
    assert dci.choose_captions("a", CAPTIONS, "first", 0, 3) == ["c0"]
    assert dci.choose_captions("a", CAPTIONS, "pick5", 0, 3) == ["c0", "c1", "c2", "c3", "c4"]
    assert dci.choose_captions("a", CAPTIONS[:2], "pick5", 0, 3) == ["c0", "c1", "c0", "c1", "c0"]


def test_pick1_is_uniform_over_visits_and_depends_on_seed_epoch_and_entry_alone() -> None:
    visits = [dci.choose_captions("a", CAPTIONS, "pick1", 0, epoch)[0] for epoch in range(3000)]
    counts = Counter(visits)
    assert set(counts) == {f"c{at}" for at in range(6)}
    assert max(abs(count - 500) for count in counts.values()) < 5 * math.sqrt(500 * 5 / 6)
    assert visits == [dci.choose_captions("a", CAPTIONS, "pick1", 0, epoch)[0] for epoch in range(3000)]
    assert visits != [dci.choose_captions("a", CAPTIONS, "pick1", 1, epoch)[0] for epoch in range(3000)]
    assert visits != [dci.choose_captions("b", CAPTIONS, "pick1", 0, epoch)[0] for epoch in range(3000)]


def test_negatives_by_kind_and_choice() -> None:
    assert dci.choose_negative("a", NEGATIVES, "swaps", "first", 0, 0) == "s0"
    assert dci.choose_negative("a", NEGATIVES, "swaps", "hardest", 0, 0) == "s1"
    assert dci.choose_negative("a", NEGATIVES, "any", "hardest", 0, 0) == "b0"
    assert dci.choose_negative("a", NEGATIVES, "layout", "first", 0, 0) is None
    drawn = {dci.choose_negative("a", NEGATIVES, "swaps", "random", 0, epoch) for epoch in range(50)}
    assert drawn == {"s0", "s1"}
