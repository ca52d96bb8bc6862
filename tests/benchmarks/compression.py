"""How long LongVU's reductions take beside plain loops over frames and tokens that give the same tokens.

    python -m tests.benchmarks.compression [--frames 256] [--rounds 3]

A video of frames that change in a few patches, 12 x 12 tokens of width 256; each function and its loop in turn, in one
process and with one thread, the best of the rounds. Everything that stays is compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.models.compression import differing, kept_frames, most_relevant, relevance

WIDTH, SIDE, WINDOW, SIMILAR, SAME = 256, 12, 8, 0.83, 0.8


def video(frames: int) -> Tensor:
    """Return maps (T, 12, 12, 256): every third frame is a new scene, the others change in a tenth of their patches."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(frames, SIDE, SIDE, WIDTH, generator=generator)
    for frame in range(frames):
        if frame % 3:
            same = torch.rand(SIDE, SIDE, generator=generator) < 0.9
            maps[frame][same] = maps[frame - 1][same] + 0.1 * maps[frame][same]
    return maps


def looped_frames(maps: Tensor) -> Tensor:
    """Return the frames that `kept_frames` keeps, pair by pair."""
    kept = []
    for start in range(0, len(maps), WINDOW):
        window = [frame.flatten() for frame in maps[start : start + WINDOW]]
        for number, frame in enumerate(window):
            others = [F.cosine_similarity(frame, other, dim=0) for o, other in enumerate(window) if o != number]
            if number == len(window) // 2 or sum(map(float, others)) / max(len(others), 1) < SIMILAR:
                kept.append(start + number)
    return torch.tensor(kept)


def looped_question(maps: Tensor, question: Tensor, count: int) -> Tensor:
    """Return which frames are the most relevant, frame by frame."""
    scores = [float((frame.flatten(0, 1) @ question.T).mean()) for frame in maps]
    best = sorted(range(len(maps)), key=lambda frame: -scores[frame])[:count]
    return torch.tensor([frame in best for frame in range(len(maps))])


def looped_patches(maps: Tensor) -> Tensor:
    """Return which tokens stay, token by token."""
    stays = torch.ones(maps.shape[:3], dtype=torch.bool)
    for frame in range(len(maps)):
        first = maps[frame // WINDOW * WINDOW]
        if frame % WINDOW:
            for row in range(SIDE):
                for column in range(SIDE):
                    cosine = F.cosine_similarity(maps[frame, row, column], first[row, column], dim=0)
                    stays[frame, row, column] = cosine <= SAME
    return stays


def seconds(function: Callable[[], Tensor], rounds: int) -> tuple[float, Tensor]:
    """Return the shortest processor time of some rounds, and what the function gives."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def compare(frames: int, rounds: int) -> None:
    """Print the time of each reduction and of its loop; raises AssertionError where they differ."""
    maps, question = video(frames), torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1))
    count = frames // 4
    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "frames like their window": (lambda: kept_frames(maps), lambda: looped_frames(maps)),
        "frames for a question": (
            lambda: most_relevant(relevance(maps, question), count),
            lambda: looped_question(maps, question, count),
        ),
        "patches that change": (lambda: differing(maps), lambda: looped_patches(maps)),
    }
    for name, (ours, plain) in pairs.items():
        (fast, found), (slow, expected) = seconds(ours, rounds), seconds(plain, rounds)
        assert torch.equal(found, expected), name
        print(f"{name:>26}: {1000 * fast:8.1f} ms, the loop {1000 * slow:8.1f} ms: {slow / fast:.1f} times as fast")


def main() -> None:
    """Compare on one thread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    compare(given.frames, given.rounds)


if __name__ == "__main__":
    main()
