"""The benchmark of points of outlines says what it measured."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import contours


@pytest.mark.parametrize(("lead", "holds"), [(1.6, True), (1.4, False)])
def test_chosen_points_must_be_a_point_and_a_half_above_equal_steps(
    lead: float, holds: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {("DAVIS", name, n): 80 + lead * (name == "adaptive") for name in ("uniform", "adaptive") for n in (8, 16)}
    contours.report(table, [8, 16])
    printed = capsys.readouterr().out
    assert f"BAR {'holds' if holds else 'DOES NOT HOLD'}: DAVIS, n 16: adaptive is 1.5 points" in printed
    assert printed.count("BAR") == 1


def test_points_of_opencv_and_of_granary_give_a_square_back() -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:33] = True
    largest = [contours.outlines(mask)[0]]
    for sampler in (contours.opencv, contours.SAMPLERS["douglas_peucker"]):
        assert contours.measured([mask], largest, sampler, 4) == 100
