"""The training demo's table and sentences: means, deviations, and what is called clear, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from granary.pipelines.demos.comparison import Result, conclusion, spread, table_of, verdict


def result(pool: float, curated: float) -> Result:
    scores = {"raw pixels": (0.5, 0.4), "pool": (pool, 0.6), "curated": (curated, 0.6)}
    kept = {"pool": {"digits": 1000, "tiles": 600}, "curated": {"digits": 400}}
    return Result(3200, kept, {name: {"knn": knn, "linear": linear} for name, (knn, linear) in scores.items()})


@pytest.mark.parametrize(
    ("differences", "says"),
    [
        ([10, 12, 14], "curated is clearly better than pool: +12.0 ± 2.0 points"),
        ([-10, -12, -14], "curated is clearly worse than pool: -12.0 ± 2.0 points"),
        ([1, 3, 5], "no clear difference between curated and pool: +3.0 ± 2.0 points"),
        ([2.9, 4.9, 6.9], "no clear difference between curated and pool: +4.9 ± 2.0 points"),
        ([3, 5, 7], "curated is clearly better than pool: +5.0 ± 2.0 points"),  # t of 2 degrees is 4.303: 4.97
        ([12], "curated compared with pool: +12.0 points"),
        ([0, 0], "no clear difference between curated and pool: +0.0 ± 0.0 points"),
    ],
)
def test_a_difference_is_clear_when_zero_lies_outside_its_interval(differences: list[float], says: str) -> None:
    assert verdict("pool", differences) == says


def test_the_deviation_is_that_of_a_sample() -> None:
    assert spread([1, 2, 3, 4]) == "2.5 ± 1.3"
    assert spread([2.0]) == "2.0"


def test_the_sentences_compare_seed_by_seed() -> None:
    text = conclusion([result(0.40, 0.50), result(0.60, 0.71)], ["pool"]).splitlines()
    assert text[:2] == [
        "kNN: curated is clearly better than pool: +10.5 ± 0.7 points",  # though the scores differ by 20
        "linear: no clear difference between curated and pool: +0.0 ± 0.0 points",
    ]
    assert text[2].startswith("2 seeds; clear: the 95% interval")
    assert "give more --seeds" in conclusion([result(0.4, 0.5)], ["pool"])


def test_the_table_shows_means_of_counts_and_scores() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table_of([result(0.40, 0.50), result(0.42, 0.54)]))
    rows = [line.split() for line in capture.get().splitlines()[1:]]
    assert rows == [
        ["raw", "pixels", *"------", "50.0", "±", "0.0", "40.0", "±", "0.0"],
        ["pool", "1,600", "1,000", "600", "0", "0", "2", "41.0", "±", "1.4", "60.0", "±", "0.0"],
        ["curated", "400", "400", "0", "0", "0", "8", "52.0", "±", "2.8", "60.0", "±", "0.0"],
    ]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result(0.4, 0.5).write(tmp_path / "results.json")
    assert Result.read(tmp_path / "results.json") == result(0.4, 0.5)
