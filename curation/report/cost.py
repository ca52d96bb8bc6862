"""What a run cost, stage by stage, and what the same recipe would take for a larger pool by the measured rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

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


def projection(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return seconds for SIZES items, for each stage and in all; None where the run is too small to tell.

    Args:
        facts: run.json; `flow` and `stages` are read. A stage that a resumed session finished counts as if the units
            it found finished had taken as long as those it did.
    """
    items = facts["flow"][0]["in"] if facts.get("flow") else 0
    if not items:
        return []
    rows = [{"stage": row["stage"], "seconds": _scaled(row, items)} for row in facts.get("stages", [])]
    told = [row["seconds"] for row in rows]
    whole = [None if None in column else sum(column) for column in zip(*told, strict=True)]
    return [*rows, {"stage": "all", "seconds": whole}]


def _scaled(row: Mapping[str, Any], items: int) -> list[float | None]:
    quadratic = row["stage"] in QUADRATIC
    if quadratic and items < TOO_SMALL:
        return [None] * len(SIZES)
    whole = row["seconds"] * row.get("of", row["units"]) / max(1, row["units"])
    return [whole * (size / items) ** (2 if quadratic else 1) for size in SIZES]


def cost_section(facts: Mapping[str, Any]) -> Markup:
    """Return the section of a report that tells seconds, rate and peak memory of every stage, as HTML."""
    from granary.curation.report import environment

    template = environment().get_template("cost.html.j2")
    stages: Sequence[Any] = facts.get("stages", [])
    return Markup(template.render(stages=stages, projected=projection(facts), sizes=SIZES, assumptions=ASSUMPTIONS))
