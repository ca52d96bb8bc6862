"""Cuts of videos: where scenes change, and nowhere within a scene of a moving camera."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from places import SHARED

from granary.curation.videos.shots import SIDE, Shots, changes, colours, cuts
from granary.training.evaluation.videos import Videos


def test_colours_are_counted_as_a_loop_counts_them() -> None:
    thumbnail = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    counts = np.zeros((8, 8, 8))
    for red, green, blue in thumbnail.reshape(-1, 3):
        counts[red // 32, green // 32, blue // 32] += 1 / 35
    assert colours(thumbnail) == pytest.approx(counts.ravel())


def test_a_change_is_from_nothing_to_all() -> None:
    black, white, half = np.eye(512)[0], np.eye(512)[511], (np.eye(512)[0] + np.eye(512)[511]) / 2
    assert changes([black, black, white, half]).tolist() == [0, 0, 1, 0.5]
    assert changes([]).tolist() == []


def test_a_cut_that_comes_too_soon_is_none() -> None:
    change, times = np.array([0, 0.9, 0.9, 0, 0, 0.9, 0.4]), np.arange(7) * 0.5
    assert cuts(change, times, Shots(min_seconds=1)) == [0, 2, 5]
    assert cuts(change, times, Shots(min_seconds=0)) == [0, 1, 2, 5, 6]
    assert cuts(change, times, Shots(min_seconds=0, threshold=0.5)) == [0, 1, 2, 5]
    assert cuts(np.zeros(0), np.zeros(0), Shots()) == []


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_sequences_one_after_another_are_cut_between_them_alone() -> None:
    """Nine sequences of DAVIS, cameras and objects moving, 24 frames a second."""
    videos = Videos(str(SHARED / "video_frames_dev.zip"))
    seen, starts = [], []
    for video in videos.sequences:
        starts.append(len(seen))
        for name in video.frames:
            small = videos.frame(name).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            seen.append(colours(np.asarray(small)))
    assert len(starts) == 9
    assert cuts(changes(seen), np.arange(len(seen)) / 24, Shots()) == starts
