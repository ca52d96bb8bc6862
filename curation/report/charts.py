"""The two drawings of a report, as geometry: the flow of counts and the removals per threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from granary.curation.runs.facts import FlowRow
from granary.curation.runs.summary import STAGES, StageInfo

WIDTH, HEIGHT = 1000, 40  # viewBox of one band of the flow
FULL = 940  # width of the whole pool; the rest is room for what bends away


@dataclass(frozen=True)
class Band:
    """One stage of the flow: its counts and the outlines of what stays, is dropped and is dead."""

    stage: str
    label: str
    lost_label: str
    entering: int
    kept: int
    dropped: int
    dead: int
    kept_path: str
    dropped_path: str
    dead_path: str


def start(flow: Sequence[FlowRow]) -> str:
    """Outline the band of the whole pool, above the first stage; empty for an empty pool."""
    return f"M0 0H{FULL}V{HEIGHT}H0Z" if flow and flow[0]["in"] else ""


def bands(flow: Sequence[FlowRow]) -> list[Band]:
    """Turn the counters of run.json (`stage`, `in`, `kept`, `dropped`, `dead`) into bands to draw."""
    pool = max((row["in"] for row in flow), default=0)
    return [_band(row, FULL / pool if pool else 0.0) for row in flow]


def _band(row: FlowRow, scale: float) -> Band:
    kept, dropped, dead = row["kept"], row["dropped"], row["dead"]
    label, lost_label = STAGES.get(row["stage"], StageInfo(f"After {row['stage']}", "dropped"))
    return Band(
        row["stage"], label, lost_label, row["in"], kept, dropped, dead,
        f"M0 0H{kept * scale:.1f}V{HEIGHT}H0Z",
        _bend(kept * scale, dropped * scale),
        _bend((kept + dropped) * scale, dead * scale),
    )  # fmt: skip


def _bend(left: float, width: float) -> str:
    """Outline what leaves the flow, `width` from abscissa `left` on: down at first, then to the right."""
    if not width:
        return ""
    right = left + max(width, 2.5)  # a loss too thin to see is still a loss
    far, half = WIDTH - FULL, HEIGHT * 0.55
    return (
        f"M{left:.1f} 0H{right:.1f}C{right:.1f} {half} {right + far:.1f} {half} {right + far:.1f} {HEIGHT}"
        f"H{left + far:.1f}C{left + far:.1f} {half} {left:.1f} {half} {left:.1f} 0Z"
    )


def discrepancies(flow: Sequence[FlowRow], statuses: Mapping[str, int]) -> list[str]:
    """Return a sentence for each way in which the counters and the ledger do not add up; none when all do.

    Args:
        flow: of run.json.
        statuses: rows of pool files in the ledger by status (kept, dropped, dead).
    """
    sentences = []
    for row in flow:
        if (ended := row["kept"] + row["dropped"] + row["dead"]) != row["in"]:
            sentences.append(f"{row['in']:,} entered {row['stage']}, but {ended:,} were kept, dropped or dead")
    for one, two in pairwise(flow):
        if one["kept"] != two["in"]:
            sentences.append(f"{one['kept']:,} left {one['stage']}, but {two['in']:,} entered {two['stage']}")
    for status, count in totals(flow).items():
        if (listed := statuses.get(status, 0)) != count:
            sentences.append(f"the ledger has {listed:,} {status} files, run.json counts {count:,}")
    return sentences


def totals(flow: Sequence[FlowRow]) -> dict[str, int]:
    """Return how many files of the pool ended kept, dropped and dead."""
    kept = flow[-1]["kept"] if flow else 0
    return {"kept": kept, **{status: sum(row[status] for row in flow) for status in ("dropped", "dead")}}


@dataclass(frozen=True)
class Curve:
    """Images removed against threshold in a `width` x `height` box: an outline and its marked points.

    threshold: abscissa of the run's own; None where it lies outside.
    """

    line: str
    area: str
    points: list[tuple[float, float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    threshold: float | None
    width: int = 360
    height: int = 200


def curve(removed_at: Sequence[Sequence[float]], threshold: object = None) -> Curve | None:
    """Draw (threshold, images removed) pairs; None when fewer than two thresholds make a curve.

    Args:
        removed_at: the pairs.
        threshold: of the run, where it is a number.
    """
    pairs = sorted((float(threshold), int(removed)) for threshold, removed in removed_at)
    if len(pairs) < 2 or pairs[0][0] == pairs[-1][0]:
        return None
    left, right, top, bottom = 46, 348, 12, 172
    low, high = pairs[0][0], pairs[-1][0]
    most = max(removed for _, removed in pairs) or 1

    def x(threshold: float) -> float:
        return round(left + (right - left) * (threshold - low) / (high - low), 1)

    def y(removed: float) -> float:
        return round(bottom - (bottom - top) * removed / most, 1)

    line = "M" + "L".join(f"{x(t)} {y(n)}" for t, n in pairs)
    ticks = {round(low + (high - low) * i / 5, 2) for i in range(6)}
    return Curve(
        line,
        f"{line}L{x(high)} {bottom}L{x(low)} {bottom}Z",
        [(x(t), y(n), f"{n:,} removed above {t:g}") for t, n in pairs],
        [(x(t), f"{t:g}") for t in sorted(ticks) if low <= t <= high],
        [(y(n), f"{n:,}") for n in sorted({0, most // 2, most})],
        x(threshold) if isinstance(threshold, float) and low <= threshold <= high else None,
    )
