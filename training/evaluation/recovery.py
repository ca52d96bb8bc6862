"""Déjà vu of image-text models: do the pictures nearest to a caption show what its own picture shows, and is not said?

Jayaraman et al. 2024 (arXiv 2402.02103). The caption of a training picture asks for the k nearest public pictures; what
is in most of them is taken to be in the picture. What captions and objects have to do with each other anyway is known
to a model that was not trained on the picture too; the difference of the two is memorisation.
Shapes: m captions, n public pictures, V names of objects.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.store.sampling import priority
from granary.training.evaluation.memorisation import DejaVu, most_confident, ranked

FIELDS = ("name", "label")  # of a record in a column of objects
MEASURES = ("precision", "recall", "f1")


def names_of(cell: object, where: str) -> frozenset[str]:
    """Return the names of the objects in a cell: a text, a number, a list of them, or of records with a `name`.

        >>> sorted(names_of([{"name": "cat", "box": [0, 0, 2, 2]}, {"name": "car"}], "objects"))
        ['car', 'cat']

    Args:
        cell: of a column; None and blank texts are nothing.
        where: names column and dataset, for messages.

    Raises:
        UserError: it is something else.
    """
    entries = cell if isinstance(cell, list) else [cell]
    return frozenset(name for entry in entries if (name := _name(entry, where)))


def _name(entry: object, where: str) -> str:
    if isinstance(entry, Mapping):
        entry = next((entry[field] for field in FIELDS if field in entry), entry)
    if entry is None or isinstance(entry, str):
        return (entry or "").strip()
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        return f"{entry:g}"
    raise UserError(f"objects: {where} is not right: {entry!r:.60} is no name, and no record with a name")


class Recovered(NamedTuple):
    """What a model says of the pictures of captions, in the order of their ids.

    Args:
        ids: m, sorted.
        precision, recall, f1: (m,) of the objects it names; 0 where it names none that is there.
        confidence: (m,) mean score of the pictures that were nearest.
        said: m sets of names.
    """

    ids: list[str]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    confidence: NDArray[np.float64]
    said: list[frozenset[str]]


def nearest_pictures(scores: Tensor, ids: Sequence[str], k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the positions (m, k) of the public pictures that score highest with each caption, and the scores.

    Pictures that score alike come in an order drawn by hash of their ids, the same for every model.

    Args:
        scores: (n, m), of all pairs.
        ids: n, distinct, of the pictures.
        k: at most n.
        seed: of the draw.
    """
    order = torch.from_numpy(np.argsort(priority(seed, ids, "captions"), kind="stable"))
    best, places = scores[order].T.sort(dim=1, descending=True, stable=True)
    return order[places[:, :k]], best[:, :k]


def recovered(
    neighbours: Tensor,
    confidence: Tensor,
    shown: Sequence[Collection[str]],
    present: Sequence[Collection[str]],
    ids: Sequence[str],
    most: int,
    seed: int = 0,
) -> Recovered:
    """Return how well the objects of a picture are told from what the public pictures nearest to its caption show.

    Args:
        neighbours: (m, k) int64, of `nearest_pictures`.
        confidence: (m,).
        shown: the objects of each of n public pictures.
        present: those of each of m pictures, one or more.
        ids: m distinct names, in any order.
        most: names that are said at most: those that most neighbours show, equal ones in an order drawn by (seed, id).
        seed: of that draw.
    """
    names = sorted({name for some in shown for name in some})
    number = {name: place for place, name in enumerate(names)}
    table = torch.zeros(len(shown), len(names), dtype=torch.int64)
    for row, some in enumerate(shown):
        table[row, [number[name] for name in some]] = 1
    votes = torch.stack([table[row].sum(dim=0) for row in neighbours])  # (m, V)
    said = []
    for cast, best in zip(votes, ranked(votes, ids, seed, min(most, len(names))).tolist(), strict=True):
        said.append(frozenset(names[place] for place in best if cast[place]))
    order = np.argsort(np.asarray(ids, str), kind="stable")
    values = np.array([_agreement(said[place], set(present[place])) for place in order], np.float64)
    precision, recall, f1 = values.reshape(-1, 3).T
    sure, names_said = confidence.double().numpy()[order], [said[place] for place in order]
    return Recovered([ids[place] for place in order], precision, recall, f1, sure, names_said)


def _agreement(said: Collection[str], present: Collection[str]) -> tuple[float, float, float]:
    """Return precision, recall, and their harmonic mean."""
    hits = len(set(said) & set(present))
    if not hits:
        return 0.0, 0.0, 0.0
    return hits / len(said), hits / len(present), 2 * hits / (len(said) + len(present))


class Asked(NamedTuple):
    """The same captions asked of the model that was trained on their pictures, and of the one that was not."""

    target: Recovered
    reference: Recovered


def gap(directions: Sequence[Asked], measure: str, share: float, seed: int = 0) -> DejaVu:
    """Return how much better the target names objects, over the captions that each model is surest of.

    Args:
        directions: one for each attacked part.
        measure: of `MEASURES`.
        share: of the captions of a part.
        seed: of equal confidences.

    Returns:
        Means over the directions; the values of the two models are taken as independent.
    """
    means, variances, sizes = list[list[float]](), list[float](), list[int]()
    for direction in directions:
        values = [getattr(one, measure)[most_confident(one, share, seed)] for one in direction]
        means.append([float(some.mean()) for some in values])
        variances.append(sum(float(some.var()) / len(some) for some in values))
        sizes.append(len(values[0]))
    both = np.array(means)
    gaps = both[:, 0] - both[:, 1]
    error = math.sqrt(sum(variances)) / len(directions)
    target, reference = both.mean(axis=0).tolist()
    return DejaVu(float(gaps.mean()), error, target, reference, tuple(gaps.tolist()), tuple(sizes))


def better(directions: Sequence[Asked], measure: str) -> dict[str, float]:
    """Return the shares of the captions with which the target does better, and worse, means over the directions.

    The first less the second is the population gap of the paper.
    """
    signs = [np.sign(getattr(one, measure) - getattr(other, measure)) for one, other in directions]
    return {
        "target_better": float(np.mean([(sign > 0).mean() for sign in signs])),
        "reference_better": float(np.mean([(sign < 0).mean() for sign in signs])),
    }


def most_memorised(direction: Asked, present: Mapping[str, Collection[str]], count: int) -> list[dict[str, object]]:
    """Return the captions whose recall rises by most from the reference to the target, those that rise alone.

    Args:
        direction: of a part.
        present: the objects of each picture by id.
        count: at most.
    """
    rise = direction.target.recall - direction.reference.recall
    first = [place for place in np.argsort(-rise, kind="stable")[:count].tolist() if rise[place] > 0]
    return [
        {
            "id": direction.target.ids[place],
            "objects": sorted(present[direction.target.ids[place]]),
            "target_says": sorted(direction.target.said[place]),
            "reference_says": sorted(direction.reference.said[place]),
        }
        for place in first
    ]
