"""Which sample comes when: a pure function of (seed, stream, position), so that resuming needs one number.

An epoch is a permutation of the row groups by (seed, epoch), cut into `streams` equal spans of rows. A stream reads its
span from front to end, a window at a time, and shuffles inside the window by (seed, epoch, stream, window). Every row
is read exactly once an epoch, by whatever number of processes and workers, and a stream touches few row groups at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIOD = 1024  # positions over which a mixture keeps its shares exactly
WINDOW, GROUPS, SHARES = 1, 2, 3  # purposes of random draws


class Place(NamedTuple):
    """A row: of which dataset, in which epoch of that dataset, in which row group, which row of it."""

    dataset: int
    epoch: int
    group: int
    row: int


class Order:
    """The order of one dataset.

    Args:
        rows: (groups,) rows of each row group.
        seed: of the run.
        streams: spans an epoch is cut into.
        window: rows that are shuffled with one another.
    """

    def __init__(self, rows: Sequence[int], seed: int, streams: int, window: int) -> None:
        self.rows = np.asarray(rows, np.int64)
        self.total = int(self.rows.sum())
        self.seed, self.streams, self.size = seed, streams, max(1, window)
        if self.total < streams:
            raise ValueError(f"{self.total} rows cannot feed {streams} streams")
        self._permuted = functools.lru_cache(maxsize=2)(self._permute)
        self._window = functools.lru_cache(maxsize=2 * streams)(self._shuffle)

    def span(self, stream: int) -> tuple[int, int]:
        """Return the first row of a stream's span in the permuted order, and the row after its last."""
        return stream * self.total // self.streams, (stream + 1) * self.total // self.streams

    def place(self, stream: int, position: int) -> tuple[int, int, int]:
        """Return (epoch, row group, row in it) of sample number `position` of a stream."""
        low, high = self.span(stream)
        epoch, offset = divmod(position, high - low)
        groups, rows = self._window(epoch, stream, offset // self.size)
        return epoch, int(groups[offset % self.size]), int(rows[offset % self.size])

    def _permute(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the permuted group numbers, and where each begins in the permuted rows (with the end)."""
        order = np.random.default_rng([self.seed, GROUPS, epoch]).permutation(len(self.rows))
        return order, np.concatenate([[0], np.cumsum(self.rows[order])])

    def _shuffle(self, epoch: int, stream: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the groups and rows of a window, shuffled."""
        order, starts = self._permuted(epoch)
        low, high = self.span(stream)
        first = low + window * self.size
        rows = np.arange(first, min(first + self.size, high))
        rows = np.random.default_rng([self.seed, WINDOW, epoch, stream, window]).permutation(rows)
        places = np.searchsorted(starts, rows, side="right") - 1
        return order[places], rows - starts[places]


class Mixture:
    """The order of several datasets by weight: every 1024 samples of a stream hold the shares, to one sample.

    Args:
        orders: one for each dataset.
        weights: positive, any scale.
        seed: of the run.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        self.orders, self.seed = list(orders), seed
        exact = PERIOD * np.asarray(weights, float) / np.sum(weights)
        self.counts = np.floor(exact).astype(np.int64)
        largest = np.argsort(self.counts - exact, kind="stable")[: PERIOD - self.counts.sum()]
        self.counts[largest] += 1
        self._period = functools.lru_cache(maxsize=2 * orders[0].streams)(self._draw)

    def place(self, stream: int, position: int) -> Place:
        """Return where sample number `position` of a stream comes from."""
        if len(self.orders) == 1:
            return Place(0, *self.orders[0].place(stream, position))
        period, offset = divmod(position, PERIOD)
        datasets, ranks = self._period(stream, period)
        dataset = int(datasets[offset])
        within = period * int(self.counts[dataset]) + int(ranks[offset])
        return Place(dataset, *self.orders[dataset].place(stream, within))

    def _draw(self, stream: int, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the dataset of each position of a period, and how many of the same dataset come before it."""
        datasets = np.repeat(np.arange(len(self.counts)), self.counts)
        datasets = np.random.default_rng([self.seed, SHARES, stream, period]).permutation(datasets)
        ranks = np.zeros(PERIOD, np.int64)
        for dataset in range(len(self.counts)):
            members = datasets == dataset
            ranks[members] = np.arange(members.sum())
        return datasets, ranks
