"""Evaluation by factor: the accuracy for each value of each factor of variation, and zero-shot caption retrieval.

PUG (Bordes et al. 2023, arXiv 2308.03977), with the traps of its released scripts as named modes. Pure functions of
predictions: which model made them is no matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ALL = "all"  # the factor of the row that counts every sample


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The accuracy of the samples with one value of a factor.

    Args:
        factor, value: which samples.
        samples: their number.
        accuracy: share of them that is right.
        low, high: 95 % interval (Wilson 1927).
    """

    factor: str
    value: Any
    samples: int
    accuracy: float
    low: float
    high: float


def accuracy_by_factor(
    columns: Mapping[str, Sequence[Any]], correct: NDArray[np.bool_], varied: Sequence[str] | None = None
) -> list[Accuracy]:
    """Return the accuracy of all samples, then that for each value of each factor.

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
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, value in enumerate(values):
            if varied is None or varied[i] == factor:
                groups[value].append(i)
        rows += [_accuracy(factor, value, right[groups[value]]) for value in sorted(groups, key=_order)]
    return rows


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _accuracy(factor: str, value: Any, right: NDArray[np.bool_]) -> Accuracy:
    n, share = len(right), float(right.mean()) if len(right) else math.nan
    return Accuracy(factor, value, n, share, *_wilson(share, n))


def _wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson interval of a share of n: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    if not n:
        return math.nan, math.nan
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def written_table(rows: Sequence[Accuracy]) -> str:
    """Return the accuracies as a Markdown table."""
    lines = ["| factor | value | samples | accuracy | 95 % interval |", "| --- | --- | ---: | ---: | --- |"]
    lines += [
        f"| {row.factor} | {row.value} | {row.samples:,} | {row.accuracy:.1%} | {row.low:.1%} to {row.high:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot_accuracies(rows: Sequence[Accuracy], path: str) -> None:
    """Draw the accuracies as one panel for each factor, the accuracy of all as a line; the ending names the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    factors = list(dict.fromkeys(row.factor for row in rows if row.factor != ALL))
    whole = next(row.accuracy for row in rows if row.factor == ALL)
    sizes = [max(2, sum(row.factor == factor for row in rows)) for factor in factors]
    figure, panels = pyplot.subplots(
        len(factors), 1, figsize=(6, 0.9 * len(factors) + 0.24 * sum(sizes)), squeeze=False, height_ratios=sizes
    )
    for factor, panel in zip(factors, panels[:, 0], strict=True):
        mine = [row for row in rows if row.factor == factor]
        shares = [row.accuracy for row in mine]
        bounds = [[row.accuracy - row.low for row in mine], [row.high - row.accuracy for row in mine]]
        panel.barh([str(row.value) for row in mine], shares, xerr=bounds, color="#6fa699", ecolor="#6a6e75")
        panel.axvline(whole, color="#b98a3a", linewidth=1)
        panel.set(xlim=(0, 1), title=factor)
        panel.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


# -- classification with ImageNet's classes --------------------------------------------------------------------------


def classes_of(mapping: Mapping[str, Sequence[int]], inverted: bool = False) -> dict[str, frozenset[int]]:
    """Return for each label the classes that are right for it.

    Args:
        mapping: label -> indices of ImageNet-1k, as `class_to_imagenet_idx.json` has it.
        inverted: as the released script does it: an index belongs to the last label alone that names it, so a label
            all of whose indices are shared can never be right (Shirt and Sweatshirt are both 841).
    """
    if not inverted:
        return {label: frozenset(indices) for label, indices in mapping.items()}
    owner = {index: label for label, indices in mapping.items() for index in indices}
    return {label: frozenset(i for i in indices if owner[i] == label) for label, indices in mapping.items()}


def unreachable(mapping: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the labels that the inverted mapping can never predict."""
    return {label for label, indices in classes_of(mapping, inverted=True).items() if not indices}


def attainable(labels: Sequence[str], mapping: Mapping[str, Sequence[int]], inverted: bool = False) -> float:
    """Return the highest accuracy a perfect model can have: 1 - share of samples with an unreachable label."""
    lost = unreachable(mapping) if inverted else {label for label, indices in mapping.items() if not indices}
    return 1.0 - sum(label in lost for label in labels) / len(labels)


def correct_labels(
    scores: NDArray[np.floating[Any]],
    labels: Sequence[str],
    mapping: Mapping[str, Sequence[int]],
    among: Literal["all", "mapped"] = "all",
    inverted: bool = False,
) -> NDArray[np.bool_]:
    """Return which samples a classifier gets right.

    Args:
        scores: (n, classes).
        labels: (n,) keys of `mapping`.
        mapping: label -> class indices.
        among: "all": the argmax is over every class, and one outside of the mapping is wrong (PUG's protocol);
            "mapped": only over the classes of the mapping, which inflates the accuracy: report it under another name.
        inverted: see `classes_of`.

    Returns:
        (n,) bool.
    """
    right = classes_of(mapping, inverted)
    allowed = np.arange(scores.shape[1])
    if among == "mapped":
        allowed = np.array(sorted({index for indices in mapping.values() for index in indices}))
    predicted = allowed[np.argmax(scores[:, allowed], axis=1)]
    return np.array([index in right[label] for index, label in zip(predicted.tolist(), labels, strict=True)], bool)


# -- zero-shot caption retrieval -------------------------------------------------------------------------------------


def retrieval_correct(
    similarity: NDArray[np.floating[Any]], truth: Sequence[int], k: int = 1, ids: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """Return which images have their caption among the k most similar ones.

    Ties are broken at random, by a hash of the image's id: a model that says the same of every caption is right by
    chance, not always.

    Args:
        similarity: (n, captions).
        truth: (n,) the index of the true caption.
        k: captions that count.
        ids: (n,) of the images; their positions by default.

    Returns:
        (n,) bool.
    """
    right = np.zeros(len(similarity), bool)
    for i, (row, index) in enumerate(zip(similarity, truth, strict=True)):
        above, equal = int((row > row[index]).sum()), int((row == row[index]).sum())
        right[i] = above + int(_chance(f"tie/{ids[i] if ids else i}") * equal) < k
    return right


def hard_negative_correct(
    positive: NDArray[np.floating[Any]], negative: NDArray[np.floating[Any]], ids: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """Return which images are closer to their caption than to its hard negative.

    The pair stands in random order, by a hash of the image's id, and the first of two equals is taken: a constant
    scorer is right half of the time, in whichever order its ties fall.

    Args:
        positive: (n,) similarity to the true caption.
        negative: (n,) similarity to the one with positions or textures exchanged.
        ids: (n,) of the images; their positions by default.

    Returns:
        (n,) bool.
    """
    right = np.zeros(len(positive), bool)
    for i, (true, false) in enumerate(zip(positive, negative, strict=True)):
        first = _chance(f"order/{ids[i] if ids else i}") < 0.5
        pair = (true, false) if first else (false, true)
        right[i] = (int(np.argmax(pair)) == 0) == first
    return right


def _chance(text: str) -> float:
    """Return a number of [0, 1) from a hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56
