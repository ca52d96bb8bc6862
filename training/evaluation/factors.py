"""Accuracy for each value of each factor of variation, from predictions of whatever model.

PUG (Bordes et al. 2023, arXiv 2308.03977). `granary evaluate factors` is its command.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from granary.curation.intervals import wilson

ALL = "all"  # the factor of the row that counts every sample

Value = str | float | None  # of a factor; whole numbers and truth values are numbers too


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of the samples with one value of a factor.

    Args:
        factor, value: which samples.
        samples: their number.
        accuracy: share of them that is right.
        low, high: 95 % interval (Wilson 1927).
    """

    factor: str
    value: Value
    samples: int
    accuracy: float
    low: float
    high: float


def accuracy_by_factor(
    columns: Mapping[str, Sequence[Value]], correct: NDArray[np.bool_], varied: Sequence[Value] | None = None
) -> list[Accuracy]:
    """Return the accuracy of all samples, then that for each value of each factor: numbers in order, then words.

    Args:
        columns: factor columns by name, n values each.
        correct: (n,) bool, whether the prediction for a sample is right.
        varied: (n,) for data in which one factor at a time leaves its default: the factor that each sample varies. A
            sample then counts for that factor alone, as in the folders of PUG: ImageNet.

    Raises:
        ValueError: the lengths differ.
    """
    right = np.asarray(correct, bool)
    if any(len(values) != len(right) for values in (*columns.values(), *([varied] if varied is not None else []))):
        raise ValueError(f"{len(right)} predictions need as many values of every factor")
    rows = [_accuracy(ALL, ALL, right)]
    for factor, values in columns.items():
        groups: dict[Value, list[int]] = defaultdict(list)
        for i, value in enumerate(values):
            if varied is None or varied[i] == factor:
                groups[value].append(i)
        rows += [_accuracy(factor, value, right[groups[value]]) for value in sorted(groups, key=_order)]
    return rows


def _order(value: Value) -> tuple[bool, float, str]:
    if isinstance(value, str) or value is None:
        return True, 0.0, str(value)
    return False, float(value), ""


def _accuracy(factor: str, value: Value, right: NDArray[np.bool_]) -> Accuracy:
    n, share = len(right), float(right.mean()) if len(right) else math.nan
    return Accuracy(factor, value, n, share, *wilson(share, n))
