"""Weighted k nearest neighbours as in DINO (Caron et al. 2021, arXiv 2104.14294, section 4).

A neighbour votes for its label with weight exp(cosine / T), T = 0.07. Headline k is 20; further k are reported beside
it, and none is chosen on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.evaluation.features import BATCH
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores, Whole, accuracies
from granary.training.evaluation.tasks import PROBE, Task, number_of, train_and_test

K = (20, 10, 100, 200)
TEMPERATURE = 0.07
TOP = 5  # classes of which one must be right
CELLS = 1 << 27  # similarities held at once


class KNNOptions(SplitOptions, frozen=True):
    """Options of weighted k nearest neighbours."""

    k: Whole = Field(K, description="neighbours; the first is `accuracy`, the others `accuracy_kN`")
    temperature: float = Field(TEMPERATURE, description="T of the weights exp(cosine / T)")


def evaluate(measured: Measured, options: KNNOptions) -> Scores:
    """Classify test pictures by their neighbours among the training pictures, in the features of the last block.

    A picture that is in both sets is never its own neighbour.

    Returns:
        accuracy with `.mean_per_class`, `.chance` and counts; `accuracy_kN` for the other k; with more than five
        classes accuracy_top5, of the first k: the share of pictures whose class is among the five with most votes.
    """
    k, temperature = options.k, options.temperature
    if not k or min(k) < 1 or temperature <= 0:
        raise UserError(f"k, temperature: {k} and {temperature} are not right; both must be above 0")
    task = train_and_test(measured, options.holdout, why="kNN")
    top = TOP if len(task.classes) > TOP else 1
    predicted = _ranked(task, k, temperature, torch_device(measured.device), top)
    scores: dict[str, float | None] = {}
    for number in dict.fromkeys(k):
        name = "accuracy" if number == k[0] else f"accuracy_k{number}"
        scores |= accuracies(predicted[number][:, 0], task.test.labels, name)
    if top > 1:
        among = (predicted[k[0]] == task.test.labels[:, None]).any(dim=1)
        scores |= {"accuracy_top5": float(among.double().mean()), "accuracy_top5.chance": top / len(task.classes)}
    few = [number for number in k if number > len(task.train.ids)]
    notes = [f"k = {min(few)}: there are only {len(task.train.ids)} training pictures; all vote"] if few else []
    return Scores({**scores, **task.counts(), "accuracy.k": k[0]}, [*task.notes, *notes], task.settings)


PROTOCOL = Protocol(evaluate, KNNOptions, PROBE, BATCH)


def predictions(task: Task, k: Sequence[int], temperature: float, device: torch.device) -> dict[int, Tensor]:
    """Return for each k the classes (m,) of the test pictures of a task."""
    return {number: best[:, 0] for number, best in _ranked(task, k, temperature, device).items()}


def _ranked(task: Task, k: Sequence[int], temperature: float, device: torch.device, top: int = 1) -> dict[int, Tensor]:
    """Return for each k the best `top` classes (m, top) of the test pictures of a task, see `ranked_votes`."""
    groups = None
    if task.shared:
        numbers = number_of(task)
        groups = tuple(torch.tensor([numbers[name] for name in part.ids]) for part in (task.train, task.test))
    train, labels, test = (x.to(device) for x in (task.train.last, task.train.labels, task.test.last))
    return ranked_votes(train, labels, test, len(task.classes), k, temperature, groups, top)


def votes(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: Sequence[int],
    temperature: float = TEMPERATURE,
    groups: tuple[Tensor, ...] | None = None,
) -> dict[int, Tensor]:
    """Return for each k the classes (m,) on the CPU by a vote of the k nearest, weighted by exp(cosine / T).

    Args:
        train, test: (n, D), (m, D) features of any length.
        labels: (n,) int64 below `classes`.
        classes: their number.
        k: neighbours, several numbers at once; more than n are n.
        temperature: T.
        groups: (n,) and (m,) numbers; what has the number of a test picture does not vote for it.
    """
    ranked = ranked_votes(train, labels, test, classes, k, temperature, groups)
    return {number: best[:, 0] for number, best in ranked.items()}


def ranked_votes(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    k: Sequence[int],
    temperature: float = TEMPERATURE,
    groups: tuple[Tensor, ...] | None = None,
    top: int = 1,
) -> dict[int, Tensor]:
    """Return for each k the classes with most votes, the best first: (m, top) on the CPU, -1 for want of votes.

    Args:
        train, test, labels, classes, k, temperature, groups: as in `votes`.
        top: how many classes, at most all.
    """
    bank, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)
    most, winners = min(max(k), len(bank)), []
    rows = max(1, CELLS // (len(bank) + most * classes))
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ bank.T
        if groups is not None:
            same = groups[1][start : start + rows, None] == groups[0]
            similarity.masked_fill_(same.to(similarity.device), -torch.inf)
        nearest = similarity.topk(most, dim=1)
        nearer = nearest.values - nearest.values[:, :1].clamp(min=-1)  # a common factor of all weights
        weights = (nearer / temperature).exp()  # (rows, most); 0 for the picture itself
        winners.append(torch.stack([_winners(weights[:, :n], labels[nearest.indices[:, :n]], classes, top) for n in k]))
    return dict(zip(k, torch.cat(winners, dim=1).cpu(), strict=True))


def _winners(weights: Tensor, labels: Tensor, classes: int, top: int) -> Tensor:
    """Return the classes (m, top) with the greatest sums of weights (m, k), of equals the lowest first.

    A product and not a scatter: on CUDA that adds in any order. The first is a class even where all weights are 0.
    """
    member = labels[..., None] == torch.arange(classes, device=labels.device)  # (m, k, classes)
    sums = torch.einsum("mk,mkc->mc", weights, member.to(weights.dtype))
    ranked = [sums.argmax(dim=1)]
    for _ in range(top - 1):
        sums = sums.scatter(1, ranked[-1].clamp(min=0)[:, None], 0)
        ranked.append(torch.where(sums.amax(dim=1) > 0, sums.argmax(dim=1), -1))
    return torch.stack(ranked, dim=1)
