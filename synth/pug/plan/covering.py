"""Covering arrays: few rows in which every combination of the values of any t factors occurs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST = 2_000_000  # combinations to cover
CANDIDATES = 8  # rows tried for each row taken

Open = dict[tuple[int, ...], NDArray[np.bool_]]  # for each group of t factors, which combinations no row has yet


class TooManyTuples(ValueError):
    """The array would have too many combinations to cover."""


def covering_array(sizes: Sequence[int], strength: int) -> NDArray[np.int64]:
    """Build a covering array row by row, each the best of a few greedy ones (after AETG, Cohen et al. 1997).

    Args:
        sizes: number of values of each factor.
        strength: t, at most the number of factors.

    Returns:
        (rows, factors) digits; every t-tuple of values of every t factors stands in some row. The same every time.

    Raises:
        TooManyTuples: there are more than `LARGEST` combinations to cover.
    """
    groups = list(itertools.combinations(range(len(sizes)), strength))
    left = sum(math.prod(sizes[i] for i in group) for group in groups)
    if left > LARGEST:
        raise TooManyTuples(f"there are {left} combinations of {strength} factors to cover, the limit is {LARGEST}")
    open_: Open = {group: np.ones([sizes[i] for i in group], bool) for group in groups}
    rng = np.random.default_rng(0)
    rows: list[NDArray[np.int64]] = []
    while left:
        best_gain, best = 0, np.zeros(0, np.int64)
        for _ in range(CANDIDATES):
            row = _candidate(sizes, open_, rng)
            gain = sum(bool(table[tuple(row[list(group)])]) for group, table in open_.items())
            if gain > best_gain:
                best_gain, best = gain, row
        for group, table in open_.items():
            table[tuple(best[list(group)])] = False
        left -= best_gain
        rows.append(best)
    return np.array(rows, np.int64)


def _candidate(sizes: Sequence[int], open_: Open, rng: np.random.Generator) -> NDArray[np.int64]:
    """Begin with a combination nobody has, and give the other factors in random order the value that adds most."""
    row = np.full(len(sizes), -1, np.int64)
    start = max(open_, key=lambda group: np.count_nonzero(open_[group]))
    row[list(start)] = np.unravel_index(int(open_[start].argmax()), open_[start].shape)
    for factor in rng.permutation(np.flatnonzero(row < 0)):
        gains = np.zeros(sizes[factor], np.int64)
        for group, table in open_.items():
            if factor in group and all(i == factor or row[i] >= 0 for i in group):
                gains += table[tuple(slice(None) if i == factor else row[i] for i in group)]
        best = np.flatnonzero(gains == gains.max())
        row[factor] = best[rng.integers(len(best))]
    return row
