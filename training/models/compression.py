"""Fewer tokens of a long video: which frames, at which resolution, which patches (LongVU, arXiv 2410.17434).

Shapes: T frames, H x W tokens of a frame, D width, L tokens of a question, N tokens of a video. Nothing here has
weights; values keep their gradient, choices have none. Whatever stays says where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILAR = 0.83  # frames as similar as that to their window are dropped
TINY = 1e-24  # smallest square of a length: frames of zeros are like none
SAME = 0.8  # patches more similar than that to those of the first frame of their window are dropped


class Placed(NamedTuple):
    """Tokens of a video in the order of the language model.

    Args:
        values: (N, D).
        places: (N, 3) int64: frame of the source, row, column; a newline has the column after the last one.
        grids: (N, 2) int64: rows and columns of the frame's map, which say at what resolution a token was kept.
    """

    values: Tensor
    places: Tensor
    grids: Tensor

    def at(self, index: Tensor) -> Placed:
        """Return some of the tokens, by a mask (N,) or numbers."""
        return Placed(self.values[index], self.places[index], self.grids[index])


class Limits(NamedTuple):
    """What a video may cost, and how it is made to.

    Args:
        budget: tokens of the video: the context less the question and room for the answer.
        low: rows and columns of a frame at low resolution, for a square one; others in proportion.
        window: frames that are compared with each other.
        similar: threshold of frames.
        itself: whether the mean similarity of a frame holds that with itself, as in the released program.
        patches_window: frames whose patches are compared with those of the first one.
        same: threshold of patches.
        newlines: "rows" keeps the newline of a row as long as the row has a token; "first" only in the first frame of a
            window, as in the released program.
        frames: that temporal reduction leaves at most.
    """

    budget: int
    low: int = 8
    window: int = 8
    similar: float = SIMILAR
    itself: bool = False
    patches_window: int = 8
    same: float = SAME
    newlines: Literal["rows", "first"] = "rows"
    frames: int | None = None


class Compressed(NamedTuple):
    """What became of a video.

    Args:
        tokens: what is left.
        frames: (T',) int64 frames of the source that temporal reduction kept.
        sharp: (T',) bool, those at high resolution.
        mode: which of the steps were needed beside temporal reduction.
        lost: of `frames` those without any token left, since they are like the first of their window or were cut.
    """

    tokens: Placed
    frames: Tensor
    sharp: Tensor
    mode: Literal["high", "mixed", "low", "patches", "cut"]
    lost: list[int]


def window_similarity(features: Tensor, window: int, itself: bool = False) -> Tensor:
    """Return the mean cosine of every frame with the frames of its window, (T,).

    Args:
        features: (T, ...) of an encoder; all of a frame is one vector.
        window: frames of a window; windows do not overlap, the last one may be shorter.
        itself: whether a frame is compared with itself too; without, a frame alone in its window has 0.
    """
    frames = features.flatten(1).float()
    count, windows = len(frames), -(-len(frames) // window)
    parts = F.pad(frames, (0, 0, 0, windows * window - count)).unflatten(0, (windows, window))  # frames of 0 at the end
    products = parts @ parts.mT
    own = products.diagonal(dim1=1, dim2=2)
    lengths = own.clamp(min=TINY).sqrt()
    sums = (products / lengths[:, :, None] / lengths[:, None]).sum(dim=2).flatten()[:count]
    each = torch.arange(count, device=frames.device)
    sizes = (count - each // window * window).clamp(max=window)
    if itself:
        return sums / sizes
    return (sums - (own / lengths**2).flatten()[:count]) / (sizes - 1).clamp(min=1)


def kept_frames(features: Tensor, window: int = 8, similar: float = SIMILAR, itself: bool = False) -> Tensor:
    """Return the frames that stay, rising: those below a threshold, and of every window the middle one.

    Args:
        features: (T, ...).
        window: frames of a window.
        similar: strictly below it a frame stays.
        itself: as in `window_similarity`.

    Returns:
        (T',) int64.
    """
    count = len(features)
    stays = window_similarity(features, window, itself) < similar
    starts = torch.arange(0, count, window, device=features.device)
    stays[starts + (count - starts).clamp(max=window) // 2] = True
    return stays.nonzero().flatten()


def capped(frames: Tensor, most: int) -> Tensor:
    """Return at most so many of the frames (T,), in equal steps from the first to the last."""
    if len(frames) <= most:
        return frames
    return frames[torch.linspace(0, len(frames) - 1, most, dtype=torch.float64).long().to(frames.device)]


def sharp_count(budget: int, frames: int, high: int, low: int) -> int:
    """Return how many frames of a video can have `high` tokens where the others have `low`, from 0 to all."""
    return min(frames, max(0, (budget - frames * low) // (high - low))) if high > low else frames


def relevance(maps: Tensor, question: Tensor) -> Tensor:
    """Return the mean dot product of a frame's tokens with those of a question, (T,).

    Args:
        maps: (T, ..., D) in the space of the language model.
        question: (L, D).
    """
    return maps.flatten(1, -2).mean(dim=1) @ question.mean(dim=0)


def most_relevant(scores: Tensor, count: int) -> Tensor:
    """Return which frames have the highest scores, (T,) bool; of equal ones the earlier."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[scores.argsort(descending=True, stable=True)[:count]] = True
    return chosen


def resized(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Return maps (T, H, W, D) at another resolution (T, rows, columns, D), bilinear, corners not aligned."""
    moved = F.interpolate(maps.permute(0, 3, 1, 2), (rows, columns), mode="bilinear", align_corners=False)
    return moved.permute(0, 2, 3, 1)


def low_grid(rows: int, columns: int, low: int) -> tuple[int, int]:
    """Return the rows and columns of a low map: `low` along the longer side, the other in proportion, at least 1."""
    scale = min(1.0, low / max(rows, columns))
    return max(1, round(rows * scale)), max(1, round(columns * scale))


def differing(maps: Tensor, window: int = 8, same: float = SAME) -> Tensor:
    """Return which tokens stay, (T, H, W) bool: the first frame of a window whole, of the others what is not the same.

    A token is compared with the one at its place in the first frame of the window, not with the one before it, by the
    cosine over its channels; one exactly as similar as the threshold stays.

    Args:
        maps: (T, H, W, D).
        window: frames of a window.
        same: threshold.
    """
    first = maps[::window].repeat_interleave(window, dim=0)[: len(maps)]
    stays = F.cosine_similarity(maps.float(), first.float(), dim=3) <= same
    stays[::window] = True
    return stays


def laid_out(maps: Tensor, frames: Tensor, newline: Tensor | None = None) -> Placed:
    """Return all tokens of maps, frame by frame and row by row, with a newline after each row where one is given.

    Args:
        maps: (T, H, W, D).
        frames: (T,) int64 of the source.
        newline: (D,).
    """
    count, rows, columns, _ = maps.shape
    if newline is not None:
        maps = torch.cat([maps, newline.to(maps.dtype).expand(count, rows, 1, -1)], dim=2)
    row = torch.arange(rows, device=maps.device)[:, None].expand(count, rows, maps.shape[2])
    column = torch.arange(maps.shape[2], device=maps.device).expand(count, rows, -1)
    places = torch.stack([frames.to(maps.device)[:, None, None].expand_as(row), row, column], dim=3)
    grid = torch.tensor([rows, columns], device=maps.device)
    return Placed(maps.flatten(0, 2), places.flatten(0, 2), grid.expand(places.flatten(0, 2).shape[0], 2))


def joined(parts: list[Placed]) -> Placed:
    """Return tokens of several parts in the order of their frames; a frame is in one part alone."""
    values, places, grids = (torch.cat(list(tensors)) for tensors in zip(*parts, strict=True))
    return Placed(values, places, grids).at(places[:, 0].argsort(stable=True))


def ends_cut(tokens: Placed, frames: Tensor, window: int, budget: int) -> Placed:
    """Return at most `budget` tokens: every window loses as many at its end, then what is still too much goes.

    Args:
        tokens: in order.
        frames: (T,) int64 of the source, rising: windows are of so many of them.
        window: frames of a window.
        budget: tokens at most.
    """
    excess = len(tokens.places) - budget
    if excess <= 0:
        return tokens
    number = torch.searchsorted(frames, tokens.places[:, 0].contiguous()) // window
    sizes = torch.bincount(number, minlength=math.ceil(len(frames) / window))
    share = math.ceil(excess / len(sizes))
    before_end = sizes.cumsum(0)[number] - torch.arange(len(number), device=number.device)  # 1 for the last of a window
    return tokens.at((before_end > share).nonzero().flatten()[:budget])


class Costs(NamedTuple):
    """Tokens of a frame, newlines among them: at high and at low resolution; and the rows and columns of the latter."""

    high: int
    low: int
    small: tuple[int, int]


def costs_of(rows: int, columns: int, limits: Limits, newlines: bool) -> Costs:
    """Return what frames of rows x columns tokens cost."""
    small = low_grid(rows, columns, limits.low)
    high, low = (r * (c + newlines) for r, c in ((rows, columns), small))
    return Costs(high, low, small)


def surviving(features: Tensor, limits: Limits, costs: Costs) -> Tensor:
    """Return the frames that temporal reduction leaves, (T',) int64: all where they fit at low resolution."""
    if len(features) * min(costs.high, costs.low) <= limits.budget:
        return torch.arange(len(features), device=features.device)
    frames = kept_frames(features, limits.window, limits.similar, limits.itself)
    return capped(frames, limits.frames or len(frames))


def fitted(
    large: Tensor, small: Tensor, frames: Tensor, question: Tensor, limits: Limits, newline: Tensor | None = None
) -> Compressed:
    """Return frames within a budget: the second and third step, as much of them as it takes.

    Args:
        large, small: (T', H, W, D), (T', h, w, D) of the frames that are left, at high and at low resolution.
        frames: (T',) int64, their numbers in the source.
        question: (L, D).
        limits: what it may cost.
        newline: (D,) after every row of a frame.
    """
    _, rows, columns, _ = large.shape
    costs = costs_of(rows, columns, limits, newline is not None)
    sharp = torch.full_like(frames, len(frames) * costs.high <= limits.budget, dtype=torch.bool)
    if sharp.all():
        return Compressed(laid_out(large, frames, newline), frames, sharp, "high", [])
    if len(frames) * costs.low <= limits.budget:
        count = sharp_count(limits.budget, len(frames), costs.high, costs.low)
        sharp = most_relevant(relevance(large, question), count)
        parts = [laid_out(large[sharp], frames[sharp], newline), laid_out(small[~sharp], frames[~sharp], newline)]
        return Compressed(joined(parts), frames, sharp, "mixed" if count else "low", [])
    return _without_same(small, frames, sharp, limits, newline)


def compress(
    maps: Tensor,
    features: Tensor,
    question: Tensor,
    limits: Limits,
    newline: Tensor | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Compressed:
    """Return a video within its budget: as it is where it fits, otherwise by as many of the steps as it takes.

    Frames like their window are dropped first. What is left has high resolution throughout, or in the frames most
    relevant to the question, or nowhere; and if even that is too much, patches that do not change are dropped, and at
    last the ends of windows.

    Args:
        maps: (T, H, W, F) of frames, without rows of padding.
        features: (T, ...) by which frames are compared.
        question: (L, D).
        limits: what it may cost.
        newline: (D,) after every row of a frame.
        project: brings maps, resized or not, into the space of the language model: (..., F) -> (..., D); None where
            they are in it.
    """
    _, rows, columns, _ = maps.shape
    costs = costs_of(rows, columns, limits, newline is not None)
    frames = surviving(features, limits, costs)
    left = maps[frames]
    large, small = (some if project is None else project(some) for some in (left, resized(left, *costs.small)))
    return fitted(large, small, frames, question, limits, newline)


def _without_same(small: Tensor, frames: Tensor, sharp: Tensor, limits: Limits, newline: Tensor | None) -> Compressed:
    """Return low maps without patches that do not change, and cut where that is still too much."""
    stays = differing(small, limits.patches_window, limits.same)
    if newline is not None:
        ends = stays.any(dim=2, keepdim=True)
        if limits.newlines == "first":
            ends = torch.zeros_like(ends)
            ends[:: limits.patches_window] = True
        stays = torch.cat([stays, ends], dim=2)
    tokens = laid_out(small, frames, newline).at(stays.flatten())
    fits = len(tokens.places) <= limits.budget
    tokens = ends_cut(tokens, frames, limits.patches_window, limits.budget)
    left = set(tokens.places[:, 0].tolist())
    lost = [frame for frame in frames.tolist() if frame not in left]
    return Compressed(tokens, frames, sharp, "patches" if fits else "cut", lost)
