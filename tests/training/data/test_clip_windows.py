"""Windows of procedures: what is seen, what is told, and that nothing told is seen where it must not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_procedures import clips_of, procedure_rows, write_procedures

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.curation.images.limits import DecodeLimits
from granary.training.data.clip_statistics import classes_of_clips, dimension_of, spread_of_latents
from granary.training.data.clip_windows import TASKS, Task, Window, Windows, WindowViews, latents_of
from granary.training.data.loader import BatchPlan, batches
from granary.training.data.shards import open_dataset

LIMITS = DecodeLimits()


def every(task: Task, clips: int, history: int = 3, ahead: int = 3) -> list[tuple[list[int], list[int]]]:
    return [tuple(window) for window in Windows(task, history, ahead).every(clips)]  # type: ignore[misc]


def test_windows_by_hand() -> None:
    assert every("forecasting", 5) == [([0], [1]), ([0, 1], [2]), ([0, 1, 2], [3]), ([1, 2, 3], [4])]
    assert every("anticipation", 5) == [([0], [1, 2, 3]), ([0, 1], [2, 3, 4])]
    assert every("planning", 5) == [([0, 2], [0, 1, 2]), ([1, 3], [1, 2, 3]), ([2, 4], [2, 3, 4])]
    assert every("recognition", 4) == [([0, 1, 2], [0]), ([0, 1, 2], [1]), ([1, 2, 3], [2]), ([1, 2, 3], [3])]
    assert every("classification", 5) == [([0, 2, 4], [0, 2, 4])]
    assert every("classification", 1) == [([0, 0, 0], [0, 0, 0])]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("clips", range(9))
def test_windows_have_the_sizes_that_are_said_and_show_nothing_that_follows(task: Task, clips: int) -> None:
    windows = Windows(task, 4, 3)
    found = windows.every(clips)
    assert bool(found) == (clips >= windows.least)
    for observed, targets in found:
        assert 1 <= len(observed) <= windows.observed
        assert len(targets) == windows.told
        assert {*observed, *targets} <= set(range(clips))
        if task in ("forecasting", "anticipation"):
            assert max(observed) < min(targets)
        if task == "planning":
            assert not set(targets[1:-1]) & set(observed)
        if task == "recognition":
            assert set(targets) <= set(observed)


def test_all_windows_are_drawn_and_too_few_clips_are_said() -> None:
    windows, generator = Windows("forecasting", 3, 3), np.random.default_rng(0)
    drawn = [windows.drawn(5, generator) for _ in range(200)]
    assert {tuple(window.targets) for window in drawn} == {(1,), (2,), (3,), (4,)}
    with pytest.raises(DecodeError, match="1 clips; forecasting needs 2"):
        windows.drawn(1, generator)


def test_a_window_is_cut_from_latents_and_clips() -> None:
    latents = np.arange(10, dtype=np.float32).reshape(5, 1, 2)
    views = WindowViews(Windows("forecasting", 3, 3), ("verb", "noun"), "latents")
    part = views.cut(clips_of([0, 1, 2, 3, 4]), latents, Window([0, 1], [2]))
    assert part["observed"][:, 0].tolist() == [[0, 1], [2, 3], [0, 0]]
    assert part["present"].tolist() == [True, True, False]
    assert part["observed_positions"].tolist() == [0, 1, 0]
    assert (part["targets"].tolist(), part["positions"].tolist()) == ([[[4, 5]]], [2])
    assert part["told"] == [["0"], ["2"]]
    row: dict[str, Any] = {"clips": clips_of([0, 1]), "latents": [[1.0, 2.0], [3.0, 4.0]]}
    views = WindowViews(Windows("forecasting", 3, 3), ("step",), "latents")
    assert views(row, np.random.default_rng(0), {}, LIMITS)["targets"].tolist() == [[[3, 4]]]


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ([[1.0, 2.0]], r"latents of shape \(1, 1, 2\) for 2 clips"),
        ([[1.0, 2.0], [1.0]], "not numbers in lists of one length"),
        ([[1.0, 2.0], [1.0, float("nan")]], "a latent is not a number"),
        ([[], []], "for 2 clips"),
        (None, "not numbers in lists|for 2 clips"),
    ],
)
def test_wrong_latents_are_said(cell: object, sentence: str) -> None:
    with pytest.raises(DecodeError, match=sentence):
        latents_of(cell, 2)
    assert latents_of([[[1.0, 2.0]] * 3] * 2, 2).shape == (2, 3, 2)


def test_classes_and_spread_are_those_of_all_clips(tmp_path: Path) -> None:
    run = write_procedures(tmp_path / "run", 9, least=4)
    dataset = open_dataset(run, ("clips", "latents"))
    classes = classes_of_clips([dataset], ["step", "verb"])
    assert classes == {"step": ["0", "1", "2", "3", "4", "5"], "verb": ["0", "1"]}
    with pytest.raises(UserError, match="have 0 values of 'tool'"):
        classes_of_clips([dataset], ["tool"])
    assert dimension_of([dataset], "latents") == 8
    views = WindowViews(Windows("forecasting", 3, 3), ("step",), "latents")
    plan = BatchPlan([dataset], [1.0], {}, ["clips", "latents"], views=views)
    flat = np.concatenate([np.array(row["latents"]) for row in procedure_rows(9, least=4)])
    spread = spread_of_latents(plan)
    np.testing.assert_allclose(spread.mean.numpy(), flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(spread.std.numpy(), flat.std(axis=0), atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_windows_that_step_and_place_decide_alone(workers: int, tmp_path: Path) -> None:
    dataset = open_dataset(write_procedures(tmp_path / "run"), ("clips", "latents"))
    views = WindowViews(Windows("anticipation", 4, 2), ("step",), "latents")
    plan = BatchPlan([dataset], [1.0], {}, ["clips", "latents"], batch=8, streams=4, views=views)
    first, second = (list(batches(plan, range(3), workers=w)) for w in (0, workers))
    for one, other in zip(first, second, strict=True):
        assert one["observed"].shape == (8, 4, 1, 8)
        assert one["told"] == other["told"]
        assert one["observed"].equal(other["observed"])
    assert {len(batch["told"]) for batch in first} == {8}
