"""The benchmark of VistaLLM: the pictures that are rendered, and what its bars say."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.benchmarks import vistallm


def test_pictures_of_the_benchmark_show_one_or_two_things_apart_and_no_two_are_alike() -> None:
    rows = vistallm.rows_of(400)
    assert rows == vistallm.rows_of(400)
    assert len({tuple(row.values()) for row in rows}) == 400
    names = [[row["character_name"], row["character2_name"]] for row in rows]
    assert all(one != other for one, other in names)
    alone = Counter("blank" in pair for pair in names)
    assert alone[True] / 400 == pytest.approx(vistallm.ALONE, abs=0.08)
    shown = Counter(name for pair in names for name in pair if name != "blank")
    assert set(shown) == set(vistallm.THINGS)
    assert all(str(row["character1_pos"]).startswith("left") for row in rows)
    assert {str(row["character2_pos"]) for row in rows} == {p for p in vistallm.PLACES if p.startswith("right")}


@pytest.mark.parametrize(("value", "other"), [(0.95, 0.5), (0.95, 0.8), (0.4, 0.1)])
def test_bars_are_of_the_value_and_of_the_gap(value: float, other: float, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {key: value for key in vistallm.BARS} | {f"{key}.permuted": other for key in vistallm.BARS}
    vistallm.report(numbers)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAR")]
    high = ["BAR holds" if value >= least else "BAR DOES NOT HOLD" for _, least in vistallm.BARS.values()]
    gap = "BAR holds" if value - other >= vistallm.ABOVE else "BAR DOES NOT HOLD"
    assert [line.partition(":")[0] for line in lines] == [verdict for one in high for verdict in (one, gap)]
