"""LongVU's reductions: golden figures of the paper, slow loops, and what must never happen to a video."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.models.compression import (
    Limits,
    Placed,
    capped,
    compress,
    differing,
    ends_cut,
    kept_frames,
    laid_out,
    low_grid,
    most_relevant,
    relevance,
    resized,
    sharp_count,
    window_similarity,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kinds(*numbers: int) -> Tensor:
    """Frames as orthogonal unit vectors."""
    return torch.eye(max(numbers) + 1)[list(numbers)]


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        (kinds(*[0] * 16), [8]),
        (kinds(*[0] * 32), [8, 24]),
        (kinds(*[0] * 14, 1, 2), [8, 14, 15]),
        (kinds(*[0] * 8, *[1] * 8), list(range(16))),
        (kinds(*[0] * 17), [8, 16]),
    ],
)
def test_the_released_program_keeps_these_frames(frames: Tensor, kept: list[int]) -> None:
    assert kept_frames(frames, window=16, similar=0.83, itself=True).tolist() == kept


def test_of_eight_frames_that_are_the_same_one_stays() -> None:
    assert window_similarity(kinds(*[0] * 8), 8) == pytest.approx(torch.ones(8))
    assert kept_frames(kinds(*[0] * 8)).tolist() == [4]


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize(("count", "window"), [(1, 8), (8, 8), (13, 5), (21, 4), (9, 1)])
def test_similarity_is_that_of_two_loops(count: int, window: int, itself: bool) -> None:
    frames = random(count, 3, 4)
    found = window_similarity(frames, window, itself)
    for number in range(count):
        start = number // window * window
        others = [o for o in range(start, min(start + window, count)) if itself or o != number]
        cosines = [F.cosine_similarity(frames[number].flatten(), frames[o].flatten(), dim=0) for o in others]
        assert found[number] == pytest.approx(float(sum(cosines)) / max(len(others), 1), abs=1e-6)
    starts = range(0, count, window)
    assert {start + min(window, count - start) // 2 for start in starts} <= set(kept_frames(frames, window).tolist())


def test_the_size_of_one_frames_features_changes_nothing() -> None:
    frames, maps = random(20, 6, 8), random(16, 3, 4, 8) + 2
    larger, brighter = frames.clone(), maps.clone()
    larger[5] *= 7
    brighter[3] *= 7
    assert torch.equal(kept_frames(larger, similar=0.02), kept_frames(frames, similar=0.02))
    assert torch.equal(differing(brighter), differing(maps))


def test_frames_are_capped_in_equal_steps() -> None:
    frames = torch.arange(1000, 2001)
    few = capped(frames, 5)
    assert few.tolist() == [1000, 1250, 1500, 1750, 2000]
    assert torch.equal(capped(frames, 1001), frames)


@pytest.mark.parametrize(("frames", "count"), [(100, 20), (130, 0), (10, 10), (1000, 0)])
def test_so_many_frames_can_be_sharp(frames: int, count: int) -> None:
    assert sharp_count(8192 - 116, frames, 144, 64) == count
    if 0 < count < frames:
        assert count * 144 + (frames - count) * 64 <= 8192 - 116 < (count + 1) * 144 + (frames - count - 1) * 64


def test_relevance_is_that_of_three_loops_in_value_and_gradient() -> None:
    maps, question = random(4, 2, 3, 5).requires_grad_(), random(6, 5, seed=1).requires_grad_()
    slow = [sum(torch.dot(token, word) for token in frame.flatten(0, 1) for word in question) / 36 for frame in maps]
    weights = random(4, seed=2)
    expected = torch.autograd.grad((torch.stack(slow) * weights).sum(), (maps, question))
    found = relevance(maps, question)
    assert torch.allclose(found, torch.stack(slow), atol=1e-6)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), (maps, question)), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_of_equally_relevant_frames_the_earlier_are_sharp() -> None:
    assert most_relevant(torch.tensor([1.0, 3, 3, 3, 0]), 2).tolist() == [False, True, True, False, False]
    assert most_relevant(torch.tensor([1.0, 3]), 0).tolist() == [False, False]


def test_low_maps_are_the_bilinear_ones_of_four_neighbours() -> None:
    maps = random(2, 12, 7, 3)
    small = resized(maps, 8, 5)
    for row in range(8):
        for column in range(5):
            y, x = (row + 0.5) * 12 / 8 - 0.5, (column + 0.5) * 7 / 5 - 0.5
            top, left = math.floor(y), math.floor(x)
            expected = sum(
                maps[:, min(max(r, 0), 11), min(max(c, 0), 6)] * (1 - abs(y - r)) * (1 - abs(x - c))
                for r in (top, top + 1)
                for c in (left, left + 1)
            )
            assert torch.allclose(small[:, row, column], expected, atol=1e-5)
    assert (low_grid(12, 12, 8), low_grid(7, 12, 8), low_grid(3, 3, 8)) == ((8, 8), (5, 8), (3, 3))


def test_of_a_still_video_one_frame_of_a_window_stays() -> None:
    still = random(1, 4, 5, 6).expand(19, -1, -1, -1)
    assert int(differing(still).sum()) == math.ceil(19 / 8) * 20
    assert differing(still)[::8].all()


def test_nothing_of_a_video_goes_whose_frames_are_orthogonal() -> None:
    maps = torch.eye(8)[:, None, None].expand(8, 3, 3, 8)
    assert differing(maps).all()


def test_a_slow_drift_is_compared_with_the_first_frame() -> None:
    """Neighbours are 0.9 similar, the last is half a turn away from the first."""
    angles = math.acos(0.9) * torch.arange(8)
    maps = torch.stack([angles.cos(), angles.sin()], dim=1)[:, None, None]
    assert differing(maps).flatten().tolist() == [True, False, *[True] * 6]


def test_a_token_exactly_as_similar_as_the_threshold_stays() -> None:
    maps = torch.tensor([[1.0, 0], [0.5, 0.0]])[:, None, None]
    assert differing(maps, same=1.0).all()
    assert differing(maps, same=0.999).flatten().tolist() == [True, False]


def test_more_stays_at_a_higher_threshold() -> None:
    maps = random(16, 4, 4, 3) + 1
    counts = [int(differing(maps, same=value).sum()) for value in (-1, 0, 0.5, 0.8, 0.95, 1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[3] < counts[-1]


def test_tokens_know_their_frame_row_and_column() -> None:
    maps, newline = random(3, 2, 4, 5), random(5, seed=1)
    tokens = laid_out(maps, torch.tensor([4, 7, 9]), newline)
    assert len(tokens.values) == 3 * 2 * 5
    assert (tokens.grids == torch.tensor([2, 4])).all()
    numbers = {4: 0, 7: 1, 9: 2}
    for value, (frame, row, column) in zip(tokens.values, tokens.places.tolist(), strict=True):
        assert torch.equal(value, newline if column == 4 else maps[numbers[frame], row, column])


@pytest.mark.parametrize("budget", [0, 3, 10, 17, 29, 30, 40])
def test_ends_of_windows_are_cut_as_a_loop_cuts_them(budget: int) -> None:
    frames = torch.tensor([1, 2, 5, 6, 9])
    tokens = laid_out(random(5, 2, 3, 4), frames)
    kept = [row for row in range(30) if row % 7 != 3]
    tokens = tokens.at(torch.tensor(kept))
    windows = [[place for place in tokens.places.tolist() if place[0] in own] for own in ([1, 2], [5, 6], [9])]
    excess = len(kept) - budget
    share = max(0, math.ceil(excess / 3))
    expected = [place for own in windows for place in own[: max(0, len(own) - share)]][:budget]
    assert ends_cut(tokens, frames, 2, budget).places.tolist() == (expected if excess > 0 else tokens.places.tolist())


def video(count: int, rows: int, columns: int, still: float) -> tuple[Tensor, Tensor]:
    """Maps, and features of frames of which a share is like the one before, with the changes in a few patches."""
    scenes = random(count, rows, columns, 16)
    for frame in range(1, count):
        if torch.rand(1, generator=torch.Generator().manual_seed(frame)) < still:
            scenes[frame] = scenes[frame - 1] + 0.05 * scenes[frame]
    return scenes, scenes.flatten(1)


@pytest.mark.parametrize("budget", [90, 400, 900, 2_000, 6_000, 20_000])
@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (7, 12)])
@pytest.mark.parametrize("newline", [None, torch.ones(16)])
@pytest.mark.parametrize("newlines", ["rows", "first"])
def test_the_budget_holds_and_the_order_stays(
    budget: int, rows: int, columns: int, newline: Tensor | None, newlines: str
) -> None:
    maps, features = video(70, rows, columns, 0.7)
    limits = Limits(budget, newlines=newlines)  # type: ignore[arg-type]
    found = compress(maps, features, random(5, 16, seed=3), limits, newline)
    places = found.tokens.places
    assert len(places) == len(found.tokens.values) == len(found.tokens.grids) <= budget
    order = (places[:, 0] * 100 + places[:, 1]) * 100 + places[:, 2]
    assert (order.diff() > 0).all()
    assert set(places[:, 0].tolist()) == set(found.frames.tolist()) - set(found.lost)
    if found.mode in ("mixed", "low", "high"):
        assert not found.lost
    for number, frame in enumerate(found.frames.tolist()):
        grids = found.tokens.grids[places[:, 0] == frame]
        expected = [rows, columns] if found.sharp[number] else list(low_grid(rows, columns, 8))
        assert all(grid == expected for grid in grids.tolist())


def test_every_mode_is_reached() -> None:
    (maps, _), features = video(70, 12, 12, 0.9), random(70, 8)  # no frame is like its window
    question = random(5, 16, seed=3)
    modes = [compress(maps, features, question, Limits(budget)).mode for budget in (90, 3_000, 5_000, 20_000)]
    assert modes == ["cut", "patches", "mixed", "high"]


def test_a_video_that_fits_is_left_as_it_is() -> None:
    maps, features = video(9, 12, 12, 1.0)
    found = compress(maps, features, random(5, 16), Limits(9 * 144))
    assert torch.equal(found.tokens.values, maps.flatten(0, 2))
    assert found.sharp.all()
    assert found.frames.tolist() == list(range(9))


def test_what_was_compressed_is_not_compressed_again() -> None:
    maps, features = video(70, 12, 12, 0.9)
    question, limits = random(5, 16, seed=3), Limits(4_000)
    once = compress(maps, features, question, limits)
    assert once.mode == "mixed"
    twice = compress(maps[once.frames], features[once.frames], question, limits)
    assert torch.equal(once.tokens.values, twice.tokens.values)
    assert torch.equal(ends_cut(once.tokens, once.frames, 8, 4_000).places, once.tokens.places)


def test_another_question_makes_other_frames_sharp() -> None:
    maps = 0.01 * random(40, 12, 12, 16)
    events = torch.eye(16)[:2]
    maps[10:12] += events[0]
    maps[30:32] += events[1]
    limits = Limits(40 * 64 + 2 * 80)
    first, second = (compress(maps, maps, event[None], limits).sharp.nonzero().flatten().tolist() for event in events)
    assert (first, second) == ([10, 11], [30, 31])


def test_gradients_reach_what_stays_as_through_a_loop() -> None:
    maps, features = video(40, 4, 4, 0.6)
    maps.requires_grad_()
    newline, question = random(16, seed=4).requires_grad_(), random(3, 16, seed=3)
    for budget in (330, 270, 60):
        found = compress(maps, features, question, Limits(budget, low=2), newline)
        assert found.mode in ("mixed", "patches", "cut")
        weights = random(*found.tokens.values.shape, seed=9)
        gradient = torch.autograd.grad((found.tokens.values * weights).sum(), (maps, newline), retain_graph=True)
        slow = []
        for (frame, row, column), grid in zip(found.tokens.places.tolist(), found.tokens.grids.tolist(), strict=True):
            scale = 4 // grid[0]
            if column == grid[1]:
                slow.append(newline)
            else:  # four by four to two by two: the mean of two by two
                rows, columns = (slice(scale * at, scale * at + scale) for at in (row, column))
                slow.append(maps[frame, rows, columns].mean(dim=(0, 1)))
        assert torch.allclose(torch.stack(slow), found.tokens.values, atol=1e-5)
        expected = torch.autograd.grad((torch.stack(slow) * weights).sum(), (maps, newline))
        for one, other in zip(gradient, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_no_frames_are_no_tokens() -> None:
    found = compress(torch.zeros(0, 4, 4, 8), torch.zeros(0, 8), random(2, 8), Limits(10))
    assert len(found.tokens.places) == 0
    assert isinstance(found.tokens, Placed)
