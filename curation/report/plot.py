"""A curve of many numbers as a small drawing: the geometry of its line and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 360, 180
LEFT, RIGHT, FLOOR, CEILING = 56, 350, 150.0, 10.0  # of the box that the line is in
POINTS = 300  # of a line at most, about: more cannot be seen
Point = tuple[float, float]


@dataclass(frozen=True)
class Plot:
    """A curve in a `width` x `height` box between `left` and `right`; ticks are places and texts.

    Args:
        line: its outline; it has a gap where numbers are not finite.
        lowest, highest, last: of the numbers.
    """

    line: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lowest: float
    highest: float
    last: float
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT


def plot(points: Sequence[Point]) -> Plot | None:
    """Draw (x, y) pairs, x ascending; pairs that are not finite leave a gap. None where no pair is finite."""
    return plots([points])[0]


def plots(curves: Sequence[Sequence[Point]]) -> list[Plot | None]:
    """Draw several curves in one box, whose ranges and ticks are those of all of them; each as `plot` does."""
    finite = [(x, y) for points in curves for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return [None] * len(curves)
    (low, high), (bottom, top) = (_range(values) for values in zip(*finite, strict=True))

    def place(x: float, y: float) -> str:
        across, up = (x - low) / (high - low), (y - bottom) / (top - bottom)
        return f"{LEFT + (RIGHT - LEFT) * across:.1f} {FLOOR - (FLOOR - CEILING) * up:.1f}"

    x_ticks = [(float(LEFT), _text(low)), (float(RIGHT - 10), _text(high))]
    y_ticks = [(FLOOR, _text(bottom)), ((FLOOR + CEILING) / 2, _text((bottom + top) / 2)), (CEILING, _text(top))]
    drawings = list[Plot | None]()
    for points in curves:
        values = [y for x, y in points if math.isfinite(x) and math.isfinite(y)]
        line = "".join(f"M{'L'.join(place(x, y) for x, y in run)}h0" for run in _runs(_thinned(points)))
        drawn = Plot(line, x_ticks, y_ticks, min(values), max(values), values[-1]) if values else None
        drawings.append(drawn)
    return drawings


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest value, apart even where they are equal."""
    least, largest = min(values), max(values)
    return (least, largest) if largest > least else (least - abs(least) / 2 - 0.5, largest + abs(least) / 2 + 0.5)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e7 else f"{value:.3g}"


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Return about `POINTS` of the points: the lowest, the highest and a gap of each of equal spans."""
    span = math.ceil(len(points) / (POINTS / 2))
    if span <= 2:
        return list(points)
    chosen: list[Point] = []
    for start in range(0, len(points), span):
        part = points[start : start + span]
        values = {at: y for at, (_, y) in enumerate(part) if math.isfinite(y)}
        kept = {min(values, key=values.__getitem__), max(values, key=values.__getitem__)} if values else set()
        kept |= {at for at in range(len(part)) if at not in values and (at == 0 or at - 1 in values)}
        chosen += [part[at] for at in sorted(kept)]
    return chosen


def _runs(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Yield the points between gaps."""
    run: list[Point] = []
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run
