"""Orders by group: all groups equally often, all groups equally large, few groups in a batch.

Like the plain order they are pure functions of (seed, stream, position), the same for any number of workers and
processes. Rows have numbers, dataset after dataset in the order of the shards; a row without a value in one of the
columns that make the groups is in none of them and is not drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from granary.training.data.order import PERIOD, Order, Place, Shares

MEMBERS, DRAWN = 4, 5  # purposes of random draws, after those of the plain order
SPARE = 100  # further rows of a group that are drawn for a batch, to stand in for what cannot be decoded
STEPS = 64  # whose draws are kept


def combined(codes: Sequence[NDArray[np.int64]]) -> NDArray[np.int32]:
    """Return the group of each row, (n,), numbered from 0: every combination of codes that occurs is one; -1 for none.

    Args:
        codes: of each column (n,), -1 for none.
    """
    table = np.stack(codes, axis=1)
    inside = (table >= 0).all(axis=1)
    groups = np.full(len(table), -1, np.int32)
    groups[inside] = np.unique(table[inside], axis=0, return_inverse=True)[1].reshape(-1)
    return groups


def members_of(groups: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Return the numbers of the rows of every group, ascending.

    Args:
        groups: (n,) of each row, -1 for none.
    """
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.searchsorted(groups[order], np.arange(groups.max() + 1)))[1:]


class Rows:
    """Where the row of a number is.

    Args:
        sizes: for each dataset the rows of its row groups.
    """

    def __init__(self, sizes: Sequence[Sequence[int]]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(np.concatenate([np.asarray(s, np.int64) for s in sizes]))])
        self.firsts = np.concatenate([[0], np.cumsum([len(s) for s in sizes])])

    def groups_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row groups, counted over all datasets, that rows lie in."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def place(self, number: int, epoch: int) -> Place:
        """Return the place of a row."""
        group = int(np.searchsorted(self.starts, number, side="right")) - 1
        dataset = int(np.searchsorted(self.firsts, group, side="right")) - 1
        return Place(dataset, epoch, group - int(self.firsts[dataset]), number - int(self.starts[group]))


class Chosen:
    """The plain order of some rows: each once an epoch.

    Args:
        rows: where rows are.
        numbers: of the chosen ones, ascending.
        seed, streams, window: as in `Order`.
    """

    def __init__(self, rows: Rows, numbers: NDArray[np.int64], seed: int, streams: int, window: int) -> None:
        _, counts = np.unique(rows.groups_of(numbers), return_counts=True)
        self.rows, self.numbers = rows, numbers
        self.firsts = np.concatenate([[0], np.cumsum(counts)])
        self.order = Order(counts.tolist(), seed, streams, window)

    def place(self, stream: int, position: int, attempt: int = 0) -> Place:
        """Return where a sample comes from, see `Mixture.place`."""
        epoch, group, row = self.order.place(stream, position + attempt)
        return self.rows.place(int(self.numbers[self.firsts[group] + row]), epoch)


class Balanced:
    """Every 1024 samples of a stream (or as many as there are groups) hold all groups equally, to one sample.

    A group is read from front to end by all streams together, as often as it takes.

    Args:
        rows: where rows are.
        members: numbers of the rows of each group.
        seed, streams, window: as in `Order`; the window is that of all streams together.
    """

    def __init__(self, rows: Rows, members: Sequence[NDArray[np.int64]], seed: int, streams: int, window: int) -> None:
        count = len(members)
        self.streams = streams
        self.orders = [Chosen(rows, numbers, seed, 1, window // count) for numbers in members]
        self.shares = Shares([1.0] * count, seed, streams, max(PERIOD, count))

    def place(self, stream: int, position: int, attempt: int = 0) -> Place:
        """Return where a sample comes from, see `Mixture.place`; a further attempt is of the same group."""
        group, within = self.shares.place(stream, position)
        return self.orders[group].place(0, (within + attempt) * self.streams + stream)


class FewClasses:
    """Every batch, over all streams, has rows of exactly `classes` groups, as many of each, to one.

    The groups of a step are drawn, all equally likely; so are their rows, none twice in a batch that is not larger than
    its groups.

    Args:
        rows: where rows are.
        members: numbers of the rows of each group.
        seed: of the run.
        streams, batch: parts of a step, its rows.
        classes: groups in a step.
    """

    def __init__(
        self, rows: Rows, members: Sequence[NDArray[np.int64]], seed: int, streams: int, batch: int, classes: int
    ) -> None:
        self.rows, self.members, self.seed, self.classes = rows, members, seed, classes
        self.size, self.most = batch // streams, -(-batch // classes)
        self._step = functools.lru_cache(maxsize=STEPS)(self._draw)

    def place(self, stream: int, position: int, attempt: int = 0) -> Place:
        """Return where a sample comes from, see `Mixture.place`; a further attempt is of the same group."""
        step, offset = divmod(position, self.size)
        turn, group = divmod(stream * self.size + offset, self.classes)
        drawn = self._step(step)[group]
        return self.rows.place(int(drawn[(turn + attempt) % len(drawn)]), step)

    def _draw(self, step: int) -> list[NDArray[np.int64]]:
        """Return the rows of the groups of a step."""
        generator = np.random.default_rng([self.seed, DRAWN, step])
        groups = generator.choice(len(self.members), self.classes, replace=False)
        chosen = [self.members[group] for group in groups]
        return [generator.choice(n, min(len(n), self.most + SPARE), replace=False) for n in chosen]


def subsampled(members: Sequence[NDArray[np.int64]], seed: int) -> NDArray[np.int64]:
    """Return the numbers of the rows, ascending, when every group is cut to the size of the smallest (SUBG).

    Idrissi et al. 2022, arXiv 2110.14503.
    """
    smallest = min(len(numbers) for numbers in members)
    draws = [np.random.default_rng([seed, MEMBERS, group]) for group in range(len(members))]
    kept = [draw.choice(numbers, smallest, replace=False) for draw, numbers in zip(draws, members, strict=True)]
    return np.sort(np.concatenate(kept))
