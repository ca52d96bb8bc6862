"""Accuracy for each value of each factor of variation: a probe's predictions, split by columns of the shards.

For renders (PUG, arXiv 2308.03977): does the representation hold when the world, the size or the light changes?
"""

from __future__ import annotations

from typing import Any, Literal

import pyarrow as pa

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.evaluation.factors import ALL, accuracy_by_factor
from granary.training.evaluation.features import BATCH, Measured
from granary.training.evaluation.heads import ridge_heads
from granary.training.evaluation.protocols.knn import TEMPERATURE, predictions
from granary.training.evaluation.protocols.linear import PENALTIES, probe
from granary.training.evaluation.scores import Scores, Words
from granary.training.evaluation.tasks import Task, train_and_test, without_test

K = 20
VARIED = "varied_factor"  # column of a render in which one factor at a time leaves its default
NOTES = ("NAME.low and .high: 95 % interval (Wilson) of each value.",)


def evaluate(
    model: str,
    data: str,
    *,
    by: Words = (),
    classifier: Literal["knn", "ridge"] = "ridge",
    split: str | None = None,
    test_data: str | None = None,
    holdout: float = 0.1,
    device: str = "auto",
    dtype: str = "float32",
    batch: int = BATCH,
    limit: int | None = None,
    seed: int = 0,
) -> Scores:
    """Teach a probe the labels, then count how often it is right for each value of some columns.

    Args:
        model: of `load_subject`.
        data, split, test_data, holdout: of `train_and_test`.
        by: columns of the test shards, written world,size. Where the shards have `varied_factor`, a picture counts
            only for the factor that it varies.
        classifier: knn with k = 20, or ridge regression with the penalty chosen on held-out training pictures.
        device, dtype, batch, limit, seed: of `Measured`.

    Returns:
        accuracy; then `FACTOR=VALUE` with `.low`, `.high` and `.pictures`; for each factor `FACTOR.spread`, the
        difference between its best and its worst value.
    """
    if not by:
        raise UserError("options.by: missing; give the columns to split by, for example --options.by world,size")
    how = Measured(model, device, dtype, batch, limit, seed)
    task = train_and_test(how, data, split, test_data, holdout, why="accuracy by factor")
    columns = columns_of(task, [*by, VARIED])
    missing = [name for name in by if name not in columns]
    if missing:
        raise UserError(f"options.by: {task.settings['test']['data']} has no column {missing[0]!r}")
    where = torch_device(device)
    if classifier == "knn":
        predicted = predictions(task, [K], TEMPERATURE, where)[K]
    else:
        task = without_test(task, "a ridge probe")
        heads = lambda x, y, count, grid: ridge_heads(x.to(where), y.to(where), count, grid)  # noqa: E731
        predicted = probe(task, [1], PENALTIES, heads)[1]
    varied = columns.pop(VARIED, None)
    rows = accuracy_by_factor(columns, (predicted == task.test.labels).numpy(), varied)
    found: dict[str, float | None] = {"accuracy": rows[0].accuracy, **task.counts()}
    for row in rows[1:]:
        name = f"{row.factor}={row.value}"
        found |= {name: row.accuracy, f"{name}.low": row.low, f"{name}.high": row.high, f"{name}.pictures": row.samples}
    for factor in by:
        shares = [row.accuracy for row in rows if row.factor == factor != ALL]
        found[f"{factor}.spread"] = max(shares) - min(shares) if shares else None
    return Scores(found, task.notes, {**task.settings, "by": list(by)})


def columns_of(task: Task, names: list[str]) -> dict[str, list[Any]]:
    """Return columns of the test pictures of a task, (n,) values each; those that the shards have not are left out."""
    place = task.settings["test"]
    holdout = task.settings.get("drawn_by_hash", 0.1)
    dataset = shards.open_dataset(place["data"], ("image",), place["split"], holdout)
    keys = [name for name in ("row_id", "id") if name in dataset.columns]
    if not keys:
        raise UserError(f"data: {place['data']} has no column id, by which pictures are told apart")
    there = [name for name in names if name in dataset.columns]
    wanted = list(dict.fromkeys([*keys, *there]))
    table = pa.Table.from_batches([shards.read_group(group, wanted) for group in dataset.groups])
    numbers: dict[str, int] = {}
    for number, row in enumerate(table.select(keys).to_pylist()):
        numbers.setdefault(str(next(filter(None, row.values()), number)), number)
    rows = [numbers[name] for name in task.test.ids]
    return {name: table[name].take(pa.array(rows)).to_pylist() for name in there}
