"""Déjà vu: does a crop of the background alone tell what a training picture shows, better than it should?

Meehan et al. 2023 (arXiv 2304.13850). A model attacks a picture by its crop: the k public pictures nearest in its own
features, by Euclidean distance, vote for their class. What backgrounds and objects have to do with each other anyway is
known to the model that was not trained on the picture too; the difference of the two is memorisation.
Shapes: m crops, n public pictures, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from granary.curation.store.sampling import priority
from granary.training.data.crops import sample_generator

TOP = 5  # classes of which one must be right
CELLS = 1 << 24  # distances held at once


def nearest(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Return the positions (m, k) of the k nearest rows of a bank by Euclidean distance, the nearest first.

    |q - b|^2 = |q|^2 - 2 q.b + |b|^2 in float64, both moved to the middle of the bank first, so that little cancels.

    Args:
        queries: (m, D).
        bank: (n, D).
        k: at most n.
    """
    middle = bank.double().mean(dim=0)
    rows, found = bank.double() - middle, []
    lengths = rows.square().sum(dim=1)
    for part in queries.split(max(1, CELLS // len(bank))):
        moved = part.double() - middle
        found.append((lengths - 2 * moved @ rows.T).topk(k, dim=1, largest=False).indices)  # |q|^2 ranks nothing
    return torch.cat(found)


def votes(neighbours: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how many neighbours of each crop are of each class, (m, C) int64.

    Args:
        neighbours: (m, k) positions.
        labels: (n,) int64, of the public pictures.
        classes: C.
    """
    cast = torch.zeros(len(neighbours), classes, dtype=torch.int64, device=neighbours.device)
    return cast.scatter_add_(1, labels[neighbours], torch.ones_like(neighbours))


def confidences(cast: Tensor) -> Tensor:
    """Return minus the entropy of votes in nats, (m,) float64: 0 where all are for one class, -ln k for k classes.

    Args:
        cast: (m, C), one vote or more in each row.
    """
    share = cast.double() / cast.sum(dim=1, keepdim=True)
    return -torch.special.entr(share).sum(dim=1)


def ranked(cast: Tensor, ids: Sequence[str], seed: int, top: int = 1) -> Tensor:
    """Return the classes with most votes, the best first, (m, top); equal ones in an order drawn by (seed, id).

    Args:
        cast: (m, C) whole numbers.
        ids: m; every model draws the same of an id, so that equal votes give equal answers.
        seed: of the draw.
        top: classes, at most C.
    """
    drawn = np.stack([sample_generator(seed, 0, f"ties/{name}").random(cast.shape[1]) for name in ids])
    return (cast.cpu().double() + torch.from_numpy(drawn)).argsort(dim=1, descending=True)[:, :top]


class Answers(NamedTuple):
    """What a model says of the crops of a set, in the order of their ids.

    Args:
        ids: m, sorted.
        labels: (m,) the classes of their pictures.
        classes: (m, top) int64, the best first.
        confidence: (m,) float64.
        ties: share of crops with several classes of most votes.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    confidence: NDArray[np.float64]
    ties: float

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the best class is that of the picture, (m,)."""
        return self.classes[:, 0] == self.labels

    @property
    def among(self) -> NDArray[np.bool_]:
        """Whether it is among the best, (m,)."""
        return (self.classes == self.labels[:, None]).any(axis=1)


def attacked(
    crops: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    bank: Tensor,
    bank_labels: Tensor,
    classes: int,
    k: int,
    seed: int = 0,
) -> Answers:
    """Return what a model says of crops; their labels are only kept beside the answers.

    Args:
        crops: (m, D) its features of the crops.
        labels, ids: (m,) int64 and m distinct names, in any order.
        bank, bank_labels: (n, D) and (n,) int64, of whole public pictures.
        classes: C.
        k: neighbours, at most n.
        seed: of ties.
    """
    cast = votes(nearest(crops, bank, k), bank_labels.to(bank.device), classes)
    order = np.argsort(np.asarray(ids, str), kind="stable")
    cast, names = cast.cpu()[torch.from_numpy(order)], [ids[place] for place in order]
    best = cast.amax(dim=1, keepdim=True)
    return Answers(
        names,
        labels.cpu().numpy()[order],
        ranked(cast, names, seed, min(TOP, classes)).numpy(),
        confidences(cast).numpy(),
        float(((cast == best).sum(dim=1) > 1).double().mean()),
    )


class Sure(Protocol):
    """What a model says of some pictures, and how sure it is of each."""

    @property
    def ids(self) -> list[str]:
        """Return their ids, m."""

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Return (m,), the larger the surer."""


class Direction(NamedTuple):
    """The same pictures attacked by the model that was trained on them, and by the one that was not."""

    target: Answers
    reference: Answers

    @classmethod
    def of(cls, target: Answers, reference: Answers) -> Direction:
        """Return the direction of two models. Raises ValueError where they were asked of other pictures."""
        if target.ids != reference.ids:
            raise ValueError("two models must attack the same pictures")
        return cls(target, reference)


class DejaVu(NamedTuple):
    """A déjà vu score, the mean over directions of an accuracy of the target less that of the reference.

    Args:
        score: signed.
        error: its standard error, the accuracies taken as independent.
        target, reference: means of the accuracies.
        directions: the score of each.
        pictures: of each, that an accuracy is over.
    """

    score: float
    error: float
    target: float
    reference: float
    directions: tuple[float, ...]
    pictures: tuple[int, ...]

    def told(self, name: str) -> Iterator[tuple[str, float | None]]:
        """Yield the score and its details, as a protocol names them."""
        yield name, self.score
        details = {"error": self.error, "target": self.target, "reference": self.reference, "chance": 0.0}
        details |= dict(zip("AB", self.directions, strict=True))
        yield from ((f"{name}.{key}", value) for key, value in details.items())
        yield f"{name}.pictures", sum(self.pictures)


def most_confident(answers: Sure, share: float, seed: int = 0) -> NDArray[np.int64]:
    """Return the positions of the crops that a model is surest of, by its own confidence, equal ones by hash.

    Args:
        answers: of the model.
        share: of the crops, above 0 to 1; one at least.
        seed: of the hash.
    """
    count = max(1, math.floor(share * len(answers.ids) + 0.5))
    drawn = priority(seed, answers.ids, "confidence")
    return np.lexsort((drawn, -answers.confidence))[:count]


def deja_vu(directions: Sequence[Direction], share: float, seed: int = 0, among: bool = False) -> DejaVu:
    """Return the déjà vu score of the most confident share of the crops, each model ranking by its own confidence.

    Args:
        directions: one for each attacked set.
        share: of the crops of a set.
        seed: of equal confidences.
        among: whether it is enough that the class is among the best `TOP`.
    """
    accuracies = np.array(
        [[_accuracy(answers, share, seed, among) for answers in direction] for direction in directions]
    )
    sizes = [len(most_confident(direction.target, share, seed)) for direction in directions]
    variance = (accuracies * (1 - accuracies)).sum(axis=1) / np.array(sizes)
    gaps = accuracies[:, 0] - accuracies[:, 1]
    return DejaVu(
        float(gaps.mean()),
        math.sqrt(float(variance.sum())) / len(directions),
        float(accuracies[:, 0].mean()),
        float(accuracies[:, 1].mean()),
        tuple(gaps.tolist()),
        tuple(sizes),
    )


def _accuracy(answers: Answers, share: float, seed: int, among: bool) -> float:
    right = answers.among if among else answers.right
    return float(right[most_confident(answers, share, seed)].mean())


def quadrants(directions: Sequence[Direction]) -> dict[str, float]:
    """Return the shares of all attacked crops by which model is right, means over directions that sum to 1.

    correlated: both; memorised: the target alone; misrepresented: the reference alone; unassociated: neither.
    """
    both = [(direction.target.right, direction.reference.right) for direction in directions]
    shares = {
        "correlated": [t & r for t, r in both],
        "memorised": [t & ~r for t, r in both],
        "misrepresented": [~t & r for t, r in both],
        "unassociated": [~t & ~r for t, r in both],
    }
    return {name: float(np.mean([part.mean() for part in parts])) for name, parts in shares.items()}


def by_class(directions: Sequence[Direction], classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return for each attacked class its crops, and the accuracies of targets and references over all of them."""
    labels = np.concatenate([direction.target.labels for direction in directions])
    right = {
        name: np.concatenate([getattr(direction, name).right for direction in directions])
        for name in ("target", "reference")
    }
    return {
        classes[number]: {
            "crops": int((labels == number).sum()),
            **{name: float(values[labels == number].mean()) for name, values in right.items()},
        }
        for number in np.unique(labels).tolist()
    }


def memorised(direction: Direction, classes: Sequence[str], count: int) -> list[dict[str, object]]:
    """Return the crops of which the target alone is right, those first where it is surer than the reference by most."""
    target, reference = direction
    gap = target.confidence - reference.confidence
    known = np.flatnonzero(target.right & ~reference.right)
    return [
        {
            "id": target.ids[place],
            "label": classes[target.labels[place]],
            "reference_says": classes[reference.classes[place, 0]],
            "confidence": float(target.confidence[place]),
            "reference_confidence": float(reference.confidence[place]),
        }
        for place in known[np.argsort(-gap[known], kind="stable")][:count].tolist()
    ]
