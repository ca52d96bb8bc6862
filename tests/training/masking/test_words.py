"""Masks of words: how many, what takes their places, and what they hang on."""

from __future__ import annotations

import numpy as np
import pytest

from granary.training.masking.words import mask_words


@pytest.mark.parametrize(("length", "count"), [(0, 0), (1, 1), (3, 1), (20, 3), (100, 15)])
def test_a_share_is_chosen_and_one_at_least(length: int, count: int) -> None:
    tokens = list(range(10, 10 + length))
    shown, chosen = mask_words(tokens, 0.15, 1, 500, np.random.default_rng(0))
    assert sum(chosen) == count
    assert [s for s, there in zip(shown, chosen, strict=True) if not there] == [
        t for t, there in zip(tokens, chosen, strict=True) if not there
    ]


def test_of_the_chosen_most_are_masked_some_are_others_and_some_stay() -> None:
    tokens, masked, same, other = [7] * 50, 0, 0, 0
    for seed in range(400):
        shown, chosen = mask_words(tokens, 0.5, 1, 10_000, np.random.default_rng(seed))
        for token, there in zip(shown, chosen, strict=True):
            masked, same, other = (
                masked + (there and token == 1),
                same + (there and token == 7),
                other + (there and token not in (1, 7)),
            )
    total = masked + same + other
    assert total == 400 * 25
    assert masked / total == pytest.approx(0.8, abs=0.02)
    assert same / total == pytest.approx(0.1, abs=0.02)
    assert other / total == pytest.approx(0.1, abs=0.02)


def test_a_mask_is_its_generators() -> None:
    draws = [mask_words(list(range(30)), 0.3, 1, 500, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
