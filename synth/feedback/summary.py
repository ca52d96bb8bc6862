"""What run.json says of the samples of a run: by class, along the steps, and beside those without feedback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from granary.curation.runs.facts import Facts
from granary.curation.runs.run import Run
from granary.curation.runs.tables import read_table
from granary.synth.feedback.drawing import DrawnRow
from granary.synth.feedback.outputs import SampleRow, sample_rows
from granary.synth.feedback.plan import Cell
from granary.synth.feedback.recipe import SampleRecipe

CLOSEST = 12  # samples most like a real picture
Trace = list[float | None]  # the mean criterion at each step, the finished sample last; None where none was finite


class ClassFacts(TypedDict):
    """What became of the rows of a cell; `value` and `agreed` are means over the samples that were kept, if any."""

    label: str
    group: str
    real: int
    planned: int
    kept: int
    copies: int
    value: float | None
    agreed: float | None


class Traces(TypedDict):
    """The mean criterion along the steps, with feedback and without."""

    guided: Trace
    unguided: Trace


class PairFacts(TypedDict):
    """The mean criterion of samples from the same seeds, with feedback and without."""

    count: int
    guided: float | None
    unguided: float | None


class Resemblance(TypedDict):
    """A sample like a real picture: its unit, its row in it, and their cosine."""

    unit: int
    row: int
    similarity: float


class Summary(TypedDict):
    """What `granary sample` adds to run.json."""

    criterion: str
    omega: float
    copy_threshold: float | None
    classes: list[ClassFacts]
    trace: Traces
    pairs: PairFacts
    closest: list[Resemblance]


class SampleFacts(Facts, Summary):
    """run.json of a sampling run."""


def summarise(run: Run, cells: Mapping[Cell, int], recipe: SampleRecipe) -> Summary:
    """Return what run.json says of the samples.

    Args:
        run: whose samples are drawn and compared.
        cells: real pictures of each class, or class in a group.
        recipe: of the run.
    """
    tallies = {cell: _Tally(real) for cell, real in cells.items()}
    guided, unguided = _Means(), _Means()
    values: dict[str, float] = {}
    resembling: list[tuple[float, str, int, int]] = []
    plain = {row["row_id"]: row for row in _unguided(run) if row["status"] == "ok"}
    for unit in range(len(run.rows("draw"))):
        for place, row in enumerate(sample_rows(run, unit, images=False)):
            tallies.setdefault(Cell(row["label"], row["group"]), _Tally()).add(row)
            if row["status"] != "dead":
                if row["row_id"] in plain or not plain:
                    guided.add(row["trace"], row["value"])
                    values[row["row_id"]] = row["value"]
                resembling.append((-row["similarity"], row["row_id"], unit, place))
        resembling = sorted(resembling)[:CLOSEST]
    again = [row for row in plain.values() if row["row_id"] in values]
    for drawn in again:
        unguided.add(drawn["trace"], drawn["value"])
    return Summary(
        criterion=recipe.guidance.criterion,
        omega=recipe.guidance.omega,
        copy_threshold=recipe.copies.threshold,
        classes=[tally.facts(cell) for cell, tally in tallies.items()],
        trace=Traces(guided=guided.trace(), unguided=unguided.trace()),
        pairs=PairFacts(
            count=len(again),
            guided=_mean([values[drawn["row_id"]] for drawn in again]),
            unguided=_mean([drawn["value"] for drawn in again]),
        ),
        closest=[Resemblance(unit=unit, row=place, similarity=-s) for s, _, unit, place in resembling],
    )


def _unguided(run: Run) -> list[DrawnRow]:
    columns = ["row_id", "status", "value", "trace"]
    return [row for url in run.parts("unguided") for row in read_table(url, columns).to_pylist()]


class _Tally:
    """What became of the rows of one cell."""

    def __init__(self, real: int = 0) -> None:
        self.real, self.planned, self.kept, self.hits, self.copies = real, 0, 0, 0, 0
        self.values: float = 0.0

    def add(self, row: SampleRow) -> None:
        """Count a row."""
        self.planned += 1
        if row["status"] == "ok":
            self.kept += 1
            self.hits += row["hit"]
            self.copies += row["copy"]
            self.values += row["value"]

    def facts(self, cell: Cell) -> ClassFacts:
        """Return counts, and means over the samples that were kept."""
        return ClassFacts(
            label=cell.label,
            group=cell.group,
            real=self.real,
            planned=self.planned,
            kept=self.kept,
            copies=self.copies,
            value=self._share(self.values),
            agreed=self._share(self.hits),
        )

    def _share(self, total: float) -> float | None:
        return round(total / self.kept, 4) if self.kept else None


class _Means:
    """The mean criterion at each feedback step (NaN where a step was skipped) and of the finished sample."""

    def __init__(self) -> None:
        self.sums: list[float] = []
        self.counts: list[int] = []

    def add(self, trace: Sequence[float], value: float) -> None:
        """Add a sample."""
        for step, criterion in enumerate([*trace, value]):
            if step == len(self.sums):
                self.sums.append(0.0)
                self.counts.append(0)
            if math.isfinite(criterion):
                self.sums[step] += criterion
                self.counts[step] += 1

    def trace(self) -> Trace:
        """Return the means, the finished sample last."""
        return [round(s / n, 4) if n else None for s, n in zip(self.sums, self.counts, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None
