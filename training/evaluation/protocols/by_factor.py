"""Accuracy for each value of each factor of variation: a probe's predictions, split by columns of the shards.

For renders (PUG, arXiv 2308.03977): does the representation hold when the world, the size or the light changes?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.table import USUAL, Columns
from granary.training.evaluation.factors import ALL, Accuracy, Value, accuracy_by_factor
from granary.training.evaluation.features import BATCH
from granary.training.evaluation.heads import LinearHead, ridge_heads
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.knn import TEMPERATURE, predictions
from granary.training.evaluation.protocols.linear import PENALTIES, probe
from granary.training.evaluation.scores import Scores, Words
from granary.training.evaluation.tasks import PROBE, Task, train_and_test, without_test

K = 20
VARIED = "varied_factor"  # column of a render in which one factor at a time leaves its default
NOTES = ("NAME.low and .high: 95 % interval (Wilson) of each value.",)


class FactorOptions(SplitOptions, frozen=True):
    """Options of accuracy by factor."""

    by: Words = Field(
        (),
        description="columns of the test shards, written world,size; where the shards have `varied_factor`, a picture "
        "counts only for the factor that it varies",
    )
    classifier: Literal["knn", "ridge"] = Field(
        "ridge",
        description="knn with k = 20, or ridge regression with the penalty chosen on held-out training pictures",
    )


def evaluate(measured: Measured, options: FactorOptions) -> Scores:
    """Teach a probe the labels, then count how often it is right for each value of some columns.

    Returns:
        accuracy; then `FACTOR=VALUE` with `.low`, `.high` and `.pictures`; for each factor `FACTOR.spread`, the
        difference between its best and its worst value.
    """
    by = options.by
    if not by:
        raise UserError("options.by: missing; give the columns to split by, for example --options.by world,size")
    task = train_and_test(measured, options.holdout, why="accuracy by factor")
    dataset = dataset_of(task, measured.columns)
    columns = columns_of(dataset, task.test.ids, [name for name in (*by, VARIED) if name in dataset.columns])
    missing = [name for name in by if name not in columns]
    if missing:
        raise UserError(f"options.by: {task.settings['test']['data']} has no column {missing[0]!r}")
    task, predicted = probed(task, options.classifier, torch_device(measured.device))
    varied = columns.pop(VARIED, None)
    rows = accuracy_by_factor(columns, (predicted == task.test.labels).numpy(), varied)
    scores = {"accuracy": rows[0].accuracy, **task.counts(), **by_value(rows[1:]), **spreads(rows, by)}
    return Scores(scores, task.notes, {**task.settings, "by": list(by)})


PROTOCOL = Protocol(evaluate, FactorOptions, PROBE, BATCH, NOTES)


def probed(task: Task, classifier: str, device: torch.device) -> tuple[Task, Tensor]:
    """Return the task that was learned, and its classes (m,) for the test pictures.

    Args:
        task: of training and test pictures.
        classifier: knn or ridge.
        device: where it is computed.
    """
    if classifier == "knn":
        return task, predictions(task, [K], TEMPERATURE, device)[K]
    task = without_test(task, "a ridge probe")

    def heads(x: Tensor, y: Tensor, count: int, grid: Sequence[float]) -> list[LinearHead]:
        return ridge_heads(x.to(device), y.to(device), count, grid)

    return task, probe(task, [1], PENALTIES, heads)[1]


def by_value(rows: Sequence[Accuracy]) -> dict[str, float | None]:
    """Return `FACTOR=VALUE` of every row, with its interval and the number of its pictures."""
    scores: dict[str, float | None] = {}
    for row in rows:
        name = f"{row.factor}={row.value}"
        scores |= {name: row.accuracy, f"{name}.low": row.low, f"{name}.high": row.high}
        scores[f"{name}.pictures"] = row.samples
    return scores


def spreads(rows: Sequence[Accuracy], factors: Sequence[str]) -> dict[str, float | None]:
    """Return the difference between the best and the worst value of every factor; None for one without rows."""
    scores: dict[str, float | None] = {}
    for factor in factors:
        shares = [row.accuracy for row in rows if row.factor == factor != ALL]
        scores[f"{factor}.spread"] = max(shares) - min(shares) if shares else None
    return scores


def dataset_of(task: Task, usual: Columns = USUAL) -> shards.Dataset:
    """Return the dataset of the test pictures of a task, opened as they were.

    Args:
        task: of the test pictures.
        usual: names of the columns of pictures and ids, where they are not granary's.
    """
    place = task.settings["test"]
    holdout = task.settings.get("drawn_by_hash", 0.1)
    return shards.open_dataset(place["data"], ("image",), place["split"], holdout, columns=usual)


def columns_of(dataset: shards.Dataset, ids: Sequence[str], names: Sequence[str]) -> dict[str, list[Value]]:
    """Return columns of some pictures of a dataset, (n,) values each.

    Args:
        dataset: opened.
        ids: n, of the pictures.
        names: of columns that it has.
    """
    keys = [name for name in ("row_id", "id") if name in dataset.columns]
    columns = list(dict.fromkeys([*keys, *names]))
    table = pa.Table.from_batches([shards.read_group(group, columns) for group in dataset.groups])
    numbers: dict[str, int] = {}
    for number, row in enumerate(table.select(keys).to_pylist()):
        numbers.setdefault(str(next(filter(None, row.values()), number)), number)
    rows = [numbers[name] for name in ids]
    return {name: table[name].take(pa.array(rows)).to_pylist() for name in names}
