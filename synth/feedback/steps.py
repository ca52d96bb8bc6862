"""The first steps of a sampling run: count the real pictures, and plan the rows to draw.

The others are in `hardness` (class Gaussians), `drawing` (samples, comparison) and `outputs` (dataset, ledger).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa

from granary.curation.runs.run import Output, Run
from granary.synth.feedback.classes import ClassIndices
from granary.synth.feedback.plan import Cell, PlannedSample, choose, plan_rows, row_seed, shortfalls
from granary.synth.feedback.prompts import prompt_of
from granary.synth.feedback.real import real_pictures
from granary.synth.feedback.recipe import FillOptions, Groups

CELLS = pa.schema([("label", pa.string()), ("group", pa.string()), ("real", pa.int64())])
PLAN = pa.schema(
    [
        ("row_id", pa.string()),
        ("seed", pa.int64()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("prompt", pa.string()),
        ("model_class", pa.int32()),
        ("target", pa.int32()),
        ("condition", pa.int64()),
        ("condition_id", pa.string()),
    ]
)
Candidates = Mapping[Cell, list[tuple[str, int]]]  # id and global index of the pictures of a cell, sorted by id


class PlanRow(TypedDict):
    """A row of the stage `plan`, see `PLAN`.

    `model_class` is None for a model without classes; `condition` is the global index of a picture, -1 for none, and
    `condition_id` its id.
    """

    row_id: str
    seed: int
    label: str
    group: str
    prompt: str
    model_class: int | None
    target: int
    condition: int
    condition_id: str | None


@dataclass(frozen=True)
class CellCount:
    """The job of `count_cells`.

    Args:
        groups: what divides a class.
    """

    groups: Groups


def count_cells(run: Run, job: CellCount, output: Output) -> None:
    """Count the real pictures of each class, or class in a group."""
    counts: Counter[Cell] = Counter()
    for picture in real_pictures(run, job.groups):
        if isinstance(picture.cell, Cell):
            counts[picture.cell] += 1
        else:
            output.counters[picture.cell] += 1
    rows = [{"label": cell.label, "group": cell.group, "real": count} for cell, count in sorted(counts.items())]
    output.write(pa.Table.from_pylist(rows, CELLS))


def read_cells(run: Run) -> dict[Cell, int]:
    """Return the counts that `count_cells` wrote."""
    return {Cell(row["label"], row["group"]): row["real"] for row in run.read("cells", 0).to_pylist()}


@dataclass(frozen=True)
class SamplePlan:
    """The job of `write_plan`.

    Args:
        seed: of the run.
        fill: how many samples of what.
        classes: of each label of the dataset, in both models.
        needs: what the model needs of a request: "prompt" and "condition" among them.
        unit_rows: samples in a work unit.
    """

    seed: int
    fill: FillOptions
    classes: Mapping[str, ClassIndices]
    needs: tuple[str, ...]
    unit_rows: int


def write_plan(run: Run, job: SamplePlan, output: Output) -> None:
    """Write the rows to draw, sorted by id; row group i is work unit i."""
    candidates = _candidates(run, job.fill.groups) if "condition" in job.needs else {}
    rows = plan_rows(shortfalls(read_cells(run), job.fill.fill, job.fill.empty_cells), job.seed)
    for start in range(0, len(rows), job.unit_rows):
        unit = [_plan_row(row, job, candidates) for row in rows[start : start + job.unit_rows]]
        output.write(pa.Table.from_pylist(unit, PLAN))
    if not rows:
        output.write(PLAN.empty_table())


def _plan_row(row: PlannedSample, job: SamplePlan, candidates: Candidates) -> PlanRow:
    label, group = row.cell
    pictures = candidates.get(row.cell) or candidates.get(Cell(label, "*"))
    identity, index = choose(pictures, job.seed, row.row_id) if pictures else (None, -1)
    name = job.fill.names.get(label, label)
    return PlanRow(
        row_id=row.row_id,
        seed=row_seed(job.seed, row.row_id),
        label=label,
        group=group,
        prompt=prompt_of(job.fill.templates, row.row_id, name, group) if "prompt" in job.needs else "",
        model_class=job.classes[label].model,
        target=job.classes[label].target,
        condition=index,
        condition_id=identity,
    )


def _candidates(run: Run, groups: Groups) -> Candidates:
    """Return the pictures that rows may be conditioned on: of each cell, and of each class as the group "*"."""
    indices: dict[Cell, dict[str, int]] = {}
    for picture in real_pictures(run, groups):
        if isinstance(picture.cell, Cell):
            for key in {picture.cell, Cell(picture.cell.label, "*")}:
                indices.setdefault(key, {}).setdefault(picture.row["id"], picture.index)
    return {cell: sorted(pictures.items()) for cell, pictures in indices.items()}
