"""How the pictures of a pool are spread over each measure of quality, and the worst of them, from a ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from granary.curation.images.filters import MEASURES, Filters, Measure
from granary.curation.store.schema import QUALITY

COLUMNS = ("width", "height", *QUALITY.names)
BINS = 48
WORST = 8  # pictures of each measure
WIDTH, HEIGHT, FLOOR = 336, 132, 112  # of a histogram; its bars stand on the floor


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: where it stands, what it says, and whether its pictures are beyond the limit."""

    x: float
    y: float
    width: float
    height: float
    text: str
    beyond: bool


@dataclass
class Spread:
    """One measure of all readable pictures of a pool.

    Args:
        measure: which.
        limit: of its filter; the recommended one where the filter is off.
        chosen: whether the filter is on.
        counts: pictures in each of BINS equal steps of its axis, those below and above in the first and the last.
        beyond: pictures that the limit drops.
        worst: (value, uri) of some pictures, the worst first.
    """

    measure: Measure
    limit: float
    chosen: bool
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    beyond: int = 0
    worst: list[tuple[float, str]] = field(default_factory=list)

    def add(self, values: NDArray[np.float64], uris: pa.Array) -> None:
        """Count the pictures of a batch.

        Args:
            values: (n,) of the measure; infinite where it says nothing.
            uris: of the pictures.
        """
        places = self.places(np.clip(values, self.measure.low, self.measure.high)) * BINS
        self.counts += np.bincount(np.clip(places.astype(np.int64), 0, BINS - 1), minlength=BINS)
        sign = 1 if self.measure.worse == "low" else -1
        self.beyond += int((sign * values < sign * self.limit).sum())
        first = np.argsort(sign * values, kind="stable")[:WORST]
        named = zip(values[first].tolist(), uris.take(pa.array(first)).to_pylist(), strict=True)
        self.worst = sorted([*self.worst, *named], key=lambda one: (sign * one[0], one[1]))[:WORST]

    def places(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where values between the ends of the axis stand on it, 0 to 1."""
        low, high = self.measure.low, self.measure.high
        if self.measure.scale == "log":
            return np.log(values / low) / math.log(high / low)
        return (values - low) / (high - low)

    def place(self, value: float) -> float:
        """Return the abscissa of a value in the drawing."""
        return round(WIDTH * float(self.places(np.array([value]))[0]), 1)

    @property
    def total(self) -> int:
        """The number of pictures."""
        return int(self.counts.sum())

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """A few abscissae with what they stand for."""
        low, high, steps = self.measure.low, self.measure.high, 4
        values = [
            low * (high / low) ** (step / steps) if self.measure.scale == "log" else low + (high - low) * step / steps
            for step in range(steps + 1)
        ]
        return [(self.place(value), f"{value:,.3g}" if value < 1000 else f"{value:,.0f}") for value in values]

    @property
    def bars(self) -> list[Bar]:
        """The histogram; a count too small to see is still a bar."""
        most, step, limit = int(self.counts.max()) or 1, WIDTH / BINS, self.place(self.limit)
        bars = []
        for number, count in enumerate(self.counts.tolist()):
            if count:
                height = max(1.5, round((FLOOR - 8) * count / most, 1))
                middle = (number + 0.5) * step
                beyond = middle < limit if self.measure.worse == "low" else middle > limit
                x, y = round(number * step, 1), round(FLOOR - height, 1)
                bars.append(Bar(x, y, round(step - 0.6, 1), height, f"{count:,} pictures", beyond))
        return bars


class Looks:
    """All measures of the readable pictures of a pool."""

    def __init__(self, filters: Filters) -> None:
        chosen = [getattr(filters, measure.option) for measure in MEASURES]
        self.all = [
            Spread(measure, measure.recommended if limit is None else limit, limit is not None)
            for measure, limit in zip(MEASURES, chosen, strict=True)
        ]

    def add(self, batch: pa.RecordBatch) -> None:
        """Count the pictures of some rows of a ledger; those of a run from before there were measures say nothing."""
        if not set(COLUMNS) <= set(batch.schema.names):
            return
        batch = batch.filter(pc.and_(pc.equal(batch["role"], "pool"), pc.is_valid(batch["entropy"])))
        if batch.num_rows:
            width, height = (batch[name].to_numpy().astype(np.float64) for name in ("width", "height"))
            sides = {"size": np.minimum(width, height), "aspect": np.maximum(width, height) / np.minimum(width, height)}
            for spread in self.all:
                name = spread.measure.name
                values = sides[name] if name in sides else batch[name].to_numpy().astype(np.float64)
                spread.add(values, batch["uri"])

    @property
    def spreads(self) -> Sequence[Spread]:
        """Each measure; none where no picture was measured."""
        return [spread for spread in self.all if spread.total]
