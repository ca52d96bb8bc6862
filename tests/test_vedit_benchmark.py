"""What VEDIT is compared with in its benchmark is right: bigrams by hand, Bayes' rule by all paths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from places import SHARED

from tests.benchmarks import vedit


def test_bigrams_count_beginnings_and_what_follows() -> None:
    first, follows = vedit.bigrams([[0, 1, 2], [0, 2], [1]], 3)
    assert first == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-3)
    assert follows[0] == pytest.approx([0, 1 / 2, 1 / 2], abs=1e-3)
    assert follows[1] == pytest.approx([0, 0, 1], abs=2e-3)
    assert follows.sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("seen", [1, 2, 4])
def test_belief_over_a_history_is_the_sum_over_all_paths(seen: int) -> None:
    random = np.random.default_rng(0)
    first, follows = vedit.softmax(random.standard_normal(3)), vedit.softmax(random.standard_normal((3, 3)))
    fits, present = random.standard_normal((1, 4, 3)), np.arange(4)[None] >= 4 - seen
    total = np.zeros(3)
    for path in itertools.product(range(3), repeat=seen):
        chance = first[path[0]] * np.prod([follows[a, b] for a, b in itertools.pairwise(path)])
        total[path[-1]] += chance * np.exp(sum(fits[0, 4 - seen + n, step] for n, step in enumerate(path)))
    np.testing.assert_allclose(vedit.filtered(fits, present, first, follows)[0], total / total.sum())


def videos() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Sixty of two orders."""
    for number in range(60):
        order = ("a", "b", "c", "d") if number % 2 else ("c", "b", "a", "d")
        yield str(number), [{"step": step} for step in order]


def test_windows_are_those_of_the_run_and_clear_latents_are_recognised(tmp_path: Path) -> None:
    run = vedit.write_run(tmp_path / "run", partial(vedit.simulated, videos(), ("step",), 1e-3))
    classes = {name: number for number, name in enumerate("abcd")}
    training, test = (vedit.NextSteps(run, split, classes) for split in ("train", "test"))
    assert len(test.sequences) == 12
    assert len(test.next) == 3 * 12
    assert test.present.sum(axis=1).tolist() == [1, 2, 3] * 12
    numbers = vedit.references(training, test, 0.05, 4)
    assert numbers["clip recognised"] == 100
    assert numbers["Bayes over the history"] == pytest.approx(50)  # each step is followed by two, as often by either
    torch.manual_seed(0)
    found = vedit.fitted(vedit.Plain(4, 16, 1), training, test, test, 100, 1e-2)
    assert found["accuracy"] == 100  # which order it is says the history


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_the_lists_are_read() -> None:
    for listed, fields in ((vedit.coin, 1), (vedit.crosstask, 1), (vedit.epic, 2)):
        found = list(listed())
        assert len(found) > 90
        assert all(len(clip) == fields for _, clips in found for clip in clips)
