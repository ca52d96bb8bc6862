"""Ways to a budget: what each may cost, in which order, and what it leaves of a video that fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from granary.training.models.compression import Compressed, Limits, compress, costs_of, kept_frames, resized
from granary.training.models.reductions import Reduction, chosen_frames, within

REDUCTIONS: tuple[Reduction, ...] = ("uniform", "temporal", "query", "full")


def brought(
    maps: Tensor, features: Tensor, limits: Limits, reduction: Reduction, newline: Tensor | None = None
) -> Compressed:
    costs = costs_of(maps.shape[1], maps.shape[2], limits, newline is not None)
    frames = chosen_frames(features, limits, costs, reduction)
    left = maps[frames]
    question = torch.randn(3, maps.shape[3], generator=torch.Generator().manual_seed(1))
    return within(left, resized(left, *costs.small), frames, question, limits, reduction, newline)


def a_video(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Return maps and features of runs of frames that stand still, with some noise."""
    draw = torch.Generator().manual_seed(seed)
    shots = torch.randint(0, 5, (count,), generator=draw).sort().values
    maps = torch.randn(5, 4, 4, 6, generator=draw)[shots] + 0.1 * torch.randn(count, 4, 4, 6, generator=draw)
    return maps, maps.flatten(1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("newline", [None, torch.ones(6)])
def test_no_video_costs_more_than_its_budget_and_frames_keep_their_order(
    reduction: Reduction, newline: Tensor | None
) -> None:
    for seed in range(12):
        maps, features = a_video(seed, 5 + 5 * seed)
        limits = Limits(budget=40 + 7 * seed, low=2)
        made = brought(maps, features, limits, reduction, newline)
        assert 0 < len(made.tokens.values) <= limits.budget
        assert len(made.tokens.values) == len(made.tokens.places) == len(made.tokens.grids)
        assert (made.tokens.places[:, 0].diff() >= 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_video_that_fits_stays_as_it_is(reduction: Reduction) -> None:
    maps, features = a_video(3, 4)
    made = brought(maps, features, Limits(budget=64, low=2), reduction)
    assert torch.equal(made.tokens.values, maps.flatten(0, 2))
    assert made.sharp.all()


def test_all_keeps_everything_whatever_it_costs() -> None:
    maps, features = a_video(3, 30)
    made = brought(maps, features, Limits(budget=1, low=2), "all")
    assert torch.equal(made.tokens.values, maps.flatten(0, 2))


def test_full_is_compress() -> None:
    for seed in range(6):
        maps, features = a_video(seed, 40)
        limits, question = (
            Limits(budget=60 + 30 * seed, low=2),
            torch.randn(3, 6, generator=torch.Generator().manual_seed(1)),
        )
        made, whole = brought(maps, features, limits, "full"), compress(maps, features, question, limits)
        assert torch.equal(made.tokens.values, whole.tokens.values)
        assert torch.equal(made.tokens.places, whole.tokens.places)


def test_what_is_projected_is_resized_before() -> None:
    maps, features = a_video(2, 20)
    limits, question = Limits(budget=100, low=2), torch.randn(3, 6)
    made = compress(maps, features, question, limits, project=torch.square)
    small = made.tokens.at(made.tokens.grids[:, 0] == 2)
    frames = small.places[:, 0].unique()
    assert len(frames)
    torch.testing.assert_close(small.values, torch.square(resized(maps[frames], 2, 2)).flatten(0, 2))


def test_uniform_takes_equal_steps_and_temporal_the_frames_unlike_their_window() -> None:
    maps, features = a_video(0, 32)
    limits = Limits(budget=8 * 16, low=2)
    assert brought(maps, features, limits, "uniform").frames.tolist() == [0, 4, 8, 13, 17, 22, 26, 31]
    temporal = brought(maps, features, limits, "temporal").frames
    assert set(temporal.tolist()) <= set(kept_frames(features).tolist())
    assert len(temporal) <= 8
