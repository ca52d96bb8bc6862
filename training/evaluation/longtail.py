"""Accuracy under imbalance: many, medium and few classes (Liu et al. 2019, arXiv 1904.05160), and the worst group.

The test set is balanced; which class is "few" is decided by how many training pictures it had.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

MANY, FEW = 100, 20  # more than 100 pictures; fewer than 20


def splits(counts: np.ndarray, many: int = MANY, few: int = FEW) -> dict[str, np.ndarray]:
    """Return the classes of each split: more than `many` pictures, fewer than `few`, and the rest.

    Args:
        counts: (K,) real training pictures of each class.
        many, few: bounds of the splits.

    Returns:
        Masks (K,) bool of many, medium and few.
    """
    return {"many": counts > many, "medium": (counts <= many) & (counts >= few), "few": counts < few}


def longtail_accuracy(
    predicted: np.ndarray, labels: np.ndarray, counts: np.ndarray, many: int = MANY, few: int = FEW
) -> dict[str, float]:
    """Return the accuracy in percent over all test pictures and over those of each split.

    Args:
        predicted, labels: (n,) int.
        counts: (K,) real training pictures of each class.
        many, few: bounds of the splits.

    Returns:
        all, many, medium, few; NaN for a split without test pictures.
    """
    right = predicted == labels
    masks = {name: classes[labels] for name, classes in splits(counts, many, few).items()}
    return {"all": _percent(right), **{name: _percent(right[mask]) for name, mask in masks.items()}}


def group_accuracy(predicted: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable]) -> dict[str, float]:
    """Return the accuracy in percent averaged over pictures, averaged over groups, and of the worst group.

        >>> import numpy as np
        >>> group_accuracy(np.array([0, 1, 1, 0]), np.array([0, 1, 1, 1]), ["day", "day", "day", "night"])
        {'all': 75.0, 'groups': 50.0, 'worst': 0.0}

    Args:
        predicted: (n,) the class answered for each test picture.
        labels: (n,) its class.
        groups: (n,) its group, for example (class, context).
    """
    names = sorted(set(groups), key=str)
    right = predicted == labels
    per_group = [_percent(right[[group == name for group in groups]]) for name in names]
    if not per_group:
        return dict.fromkeys(("all", "groups", "worst"), math.nan)
    return {"all": _percent(right), "groups": float(np.mean(per_group)), "worst": min(per_group)}


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if len(right) else math.nan
