"""What a run cost, stage by stage, and what the same recipe would take for a larger pool by the measured rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from granary.curation.runs.facts import Facts, Timing

SIZES = (10**6, 10**8, 10**9)
QUADRATIC = ("join",)  # stages that compare every picture with every other
TOO_SMALL = 20_000  # pictures: below it the join's time is start-up, and says nothing of its rate
ASSUMPTIONS = (
    "The same machine, the same number of workers and the same share kept at every stage.",
    "Every stage grows with the number of files, as the size of its parts is fixed; start-up is counted as if it "
    "grew too, so a small run gives an upper bound.",
    "The near-duplicate join grows with the square of the number of distinct files. On N machines divide by N: its "
    "units are independent.",
)


class Projected(TypedDict):
    """Seconds that a stage would take for each of SIZES; None where the run is too small to tell."""

    stage: str
    seconds: list[float | None]


def projection(facts: Facts) -> list[Projected]:
    """Return seconds for SIZES items, for each stage and in all; None where the run is too small to tell.

    Args:
        facts: run.json; `flow` and `stages` are read. A stage that a resumed session finished counts as if the units
            it found finished had taken as long as those it did.
    """
    items = facts["flow"][0]["in"] if facts.get("flow") else 0
    if not items:
        return []
    rows = [Projected(stage=row["stage"], seconds=_scaled(row, items)) for row in facts.get("stages", [])]
    whole = [_total(column) for column in zip(*(row["seconds"] for row in rows), strict=True)]
    return [*rows, Projected(stage="all", seconds=whole)]


def _total(column: Sequence[float | None]) -> float | None:
    told = [seconds for seconds in column if seconds is not None]
    return sum(told) if len(told) == len(column) else None


def _scaled(row: Timing, items: int) -> list[float | None]:
    quadratic = row["stage"] in QUADRATIC
    if quadratic and items < TOO_SMALL:
        return [None] * len(SIZES)
    whole = row["seconds"] * row.get("of", row["units"]) / max(1, row["units"])
    return [whole * (size / items) ** (2 if quadratic else 1) for size in SIZES]
