"""Which sample comes when: a pure function of (seed, stream, position), so that resuming needs one number.

An epoch is a permutation of the row groups by (seed, epoch), cut into `streams` equal spans of rows. A stream reads its
span from front to end, a window at a time, and shuffles inside the window by (seed, epoch, stream, window). Every row
is read exactly once an epoch, by whatever number of processes and workers, and a stream touches few row groups at once.
Where an epoch shall end with its last whole batch, the rows at the ends of the spans wait for another epoch.
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
        part: rows of a stream in a batch, where an epoch ends with its last whole batch.
    """

    def __init__(self, rows: Sequence[int], seed: int, streams: int, window: int, part: int | None = None) -> None:
        self.rows = np.asarray(rows, np.int64)
        self.total = int(self.rows.sum())
        self.seed, self.streams, self.size = seed, streams, max(1, window)
        self.taken = part and self.total // streams // part * part  # of a stream in an epoch; None for all
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
        epoch, offset = divmod(position, self.taken or high - low)
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


class Shares:
    """Which of several kinds of sample comes when: every `period` samples of a stream hold the shares, to one sample.

    Args:
        weights: of the kinds, positive, any scale.
        seed: of the run.
        streams: of the order.
        period: positions over which the shares are kept.
    """

    def __init__(self, weights: Sequence[float], seed: int, streams: int, period: int = PERIOD) -> None:
        self.seed, self.period = seed, period
        exact = period * np.asarray(weights, float) / np.sum(weights)
        self.counts = np.floor(exact).astype(np.int64)
        largest = np.argsort(self.counts - exact, kind="stable")[: period - self.counts.sum()]
        self.counts[largest] += 1
        self._period = functools.lru_cache(maxsize=2 * streams)(self._draw)

    def place(self, stream: int, position: int) -> tuple[int, int]:
        """Return the kind of sample number `position` of a stream, and how many of it the stream had before."""
        if len(self.counts) == 1:
            return 0, position
        period, offset = divmod(position, self.period)
        kinds, ranks = self._period(stream, period)
        kind = int(kinds[offset])
        return kind, period * int(self.counts[kind]) + int(ranks[offset])

    def _draw(self, stream: int, period: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the kind of each position of a period, and how many of the same kind come before it."""
        kinds = np.repeat(np.arange(len(self.counts)), self.counts)
        kinds = np.random.default_rng([self.seed, SHARES, stream, period]).permutation(kinds)
        ranks = np.zeros(self.period, np.int64)
        for kind in range(len(self.counts)):
            members = kinds == kind
            ranks[members] = np.arange(members.sum())
        return kinds, ranks


class Mixture:
    """The order of several datasets by weight: every 1024 samples of a stream hold the shares, to one sample.

    Args:
        orders: one for each dataset.
        weights: positive, any scale.
        seed: of the run.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        self.orders, self.shares = list(orders), Shares(weights, seed, orders[0].streams)

    def place(self, stream: int, position: int, attempt: int = 0) -> Place:
        """Return where sample number `position` of a stream comes from.

        Args:
            stream, position: which sample.
            attempt: number of samples that should have come at this position and could not be decoded.
        """
        dataset, within = self.shares.place(stream, position + attempt)
        return Place(dataset, *self.orders[dataset].place(stream, within))
