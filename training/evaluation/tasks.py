"""Labelled pictures to learn from and others to be tested on: which they are, and what was left out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.evaluation.features import Features, dead_letters, features_of
from granary.training.evaluation.protocol import Measured, Shared
from granary.training.evaluation.scores import DeadLetter
from granary.training.models.registry import resolved

Read = Callable[[shards.Dataset, str | None, Sequence[str]], Features]  # (dataset, its split, classes) -> its features
PROBE: tuple[Shared, ...] = ("split", "test_data", "batch", "limit", "seed")  # what every probe goes by


class Side(TypedDict):
    """Where the pictures of one side of a task are from."""

    data: str
    split: str | None


class TaskSettings(TypedDict):
    """What was decided while a task was made: `left_out` counts pictures, `drawn_by_hash` is a share."""

    model: str
    train: Side
    test: Side
    left_out: dict[str, int]
    dead: list[DeadLetter]
    drawn_by_hash: NotRequired[float]


@dataclass(frozen=True)
class Task:
    """Labelled pictures to learn from and others to be tested on; every label is known and among `classes`.

    Args:
        train, test: their features.
        classes: names of the labels.
        shared: whether some pictures are in both.
        notes: as in `Scores`.
        settings: what was decided.
    """

    train: Features
    test: Features
    classes: list[str]
    shared: bool
    notes: list[str]
    settings: TaskSettings

    def counts(self, name: str = "accuracy") -> dict[str, float | None]:
        """Return the chance level and the numbers of pictures as details of a metric."""
        details = {"chance": 1 / len(self.classes), "classes": len(self.classes)}
        details |= {"train": len(self.train.ids), "test": len(self.test.ids)}
        details |= {key: value for key, value in self.settings["left_out"].items() if value}
        return {f"{name}.{key}": value for key, value in details.items()}


def train_and_test(
    measured: Measured, holdout: float = 0.1, layers: int = 1, why: str = "a probe", read: Read | None = None
) -> Task:
    """Return the features of training and test pictures.

    The split "train" of the data teaches; their split "test", or the one that is measured on, is tested. Another run
    may be given to test on; without columns `split` both are then used whole. Where there is no column `split` in the
    only run, ids are drawn by hash.

    Args:
        measured: see `Measured`.
        holdout: share of the ids that is test, where it is drawn.
        layers: last blocks.
        why: who needs labels, for messages.
        read: gives the features; by default those of the last layers, see `features_of`.

    Raises:
        UserError: no label column, no labels, one class, an empty split, a model that cannot be read.
    """
    opened = list(opened_sides(measured, holdout, why))
    classes = shards.class_names([dataset for dataset, _ in opened])
    if len(classes) < 2:
        problem = f"have one class, {classes[0]!r}" if classes else "are all missing"
        raise UserError(f"data: the labels of {measured.data} {problem}; {why} needs two classes or more")
    read = read or (lambda dataset, part, names: features_of(measured, dataset, part, names, layers))
    both = [read(dataset, part, classes) for dataset, part in opened]
    return task_of(measured, opened, both, classes, holdout)


Sides = Sequence[tuple[shards.Dataset, str | None]]  # training and test dataset, each with the split it was opened for


def task_of(
    measured: Measured, opened: Sides, both: Sequence[Features], classes: list[str], holdout: float = 0.1
) -> Task:
    """Return a task from the features of its two sides.

    Args:
        measured: see `Measured`.
        opened: of `opened_sides`.
        both: the features of each.
        classes: names of the labels; where there are none, labels are not looked at.
        holdout: share of the ids that is test, where it is drawn.

    Raises:
        UserError: a side has no labels.
    """
    train, test = (
        labelled(features, f"{dataset.path}, split {part}" if part else dataset.path) if classes else features
        for features, (dataset, part) in zip(both, opened, strict=True)
    )
    sides = zip(("train", "test"), both, strict=True)
    left_out = {f"{name}_{what}": count for name, part in sides for what, count in _lost(part, bool(classes))}
    settings: TaskSettings = {
        "model": resolved(measured.model),
        "train": {"data": opened[0][0].path, "split": opened[0][1]},
        "test": {"data": opened[1][0].path, "split": opened[1][1]},
        "left_out": left_out,
        "dead": [row for part in both for row in dead_letters(part)],
    }
    drawn = [dataset for dataset, part in opened if part and not dataset.states_split]
    if drawn:
        settings["drawn_by_hash"] = holdout
    notes = list(_notes(train, test, classes, bool(drawn), holdout))
    return Task(train, test, classes, not set(train.ids).isdisjoint(test.ids), notes, settings)


def opened_sides(
    measured: Measured, holdout: float, why: str, needs: Sequence[str] = ("image", "label")
) -> Iterator[tuple[shards.Dataset, str | None]]:
    """Yield training and test dataset and the split each was opened for; see `train_and_test`.

    Args:
        measured, holdout, why: as there.
        needs: columns that must be there.

    Raises:
        UserError: as there.
    """
    other, split = measured.test_data, measured.split
    whole = shards.open_dataset(measured.data, needs, why=why, columns=measured.columns)
    train = "train" if other is None or whole.states_split else None
    yield shards.open_dataset(measured.data, needs, train, holdout, why, measured.columns), train
    if other is not None:
        whole = shards.open_dataset(other, needs, why=why, columns=measured.columns)
        split = split or ("test" if whole.states_split else None)
    else:
        split = split or "test"
    yield shards.open_dataset(other or measured.data, needs, split, holdout, why, measured.columns), split


def labelled(features: Features, where: str) -> Features:
    """Return the pictures with a label; none is a UserError."""
    known = features.labels >= 0
    if not known.any():
        raise UserError(f"data: no picture of {where} has a label")
    return features if known.all() else features.rows(known)


def _lost(part: Features, labels: bool) -> Iterator[tuple[str, int]]:
    if labels:
        yield "unlabelled", int((part.labels < 0).sum())
    yield "unreadable", len(part.dead)


def _notes(train: Features, test: Features, classes: Sequence[str], drawn: bool, holdout: float) -> Iterator[str]:
    if drawn:
        yield f"the shards have no column split: {holdout:.0%} of the ids, drawn by hash, are the test pictures"
    taught, tested = set(train.labels.tolist()), set(test.labels.tolist())
    unseen = [classes[number] for number in sorted(tested - taught)]
    if unseen:
        yield f"{len(unseen)} classes of the test pictures have no training picture, for example {unseen[0]!r}"


def without_test(task: Task, why: str) -> Task:
    """Return a task whose training pictures are none of the test pictures, and say how many were left out."""
    if not task.shared:
        return task
    tested = set(task.test.ids)
    apart = torch.tensor([name not in tested for name in task.train.ids])
    if not apart.any():
        raise UserError(f"split: training and test pictures are the same; {why} needs others to learn from")
    count = int((~apart).sum())
    note = f"{count:,} training pictures are test pictures too and were left out of training"
    left_out = {**task.settings["left_out"], "train_in_test": count}
    settings: TaskSettings = {**task.settings, "left_out": left_out}
    return dataclasses.replace(
        task, train=task.train.rows(apart), shared=False, notes=[*task.notes, note], settings=settings
    )


def changed(task: Task, change: Callable[[torch.Tensor], torch.Tensor]) -> Task:
    """Return a task in which the last features are changed and the only ones.

    Args:
        task: whose.
        change: (n, D) -> (n, E).
    """

    def part(features: Features) -> Features:
        return dataclasses.replace(features, cls=change(features.last)[:, None], mean=None)

    return dataclasses.replace(task, train=part(task.train), test=part(task.test))


def number_of(task: Task) -> Mapping[str, int]:
    """Return a number for every id of a task, equal for equal ids."""
    return {name: number for number, name in enumerate(dict.fromkeys([*task.train.ids, *task.test.ids]))}
