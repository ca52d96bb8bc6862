"""Contrastive learning with explicit negatives on dense captions: the losses and the choice of texts.

Urbanek et al. 2024 (arXiv 2312.08578). loss = alpha * CLIP loss + beta * negative loss.
Shapes: B entries of a batch, N captions of an entry. Logits are raw: exp(scale) * cosine, image by text, B x (B * N).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.curation.store.sampling import priority
from granary.training.data.pairs import Negative

Pooling = Literal["mean", "hardest", "hardest_as_published"]
Captions = Literal["first", "pick1", "pick5"]
NegativeChoice = Literal["first", "random", "hardest"]
PICK = 5


def pool_captions(logits: Tensor, captions: int, pooling: Pooling = "mean") -> Tensor:
    """Pool the captions of each entry: B x (B * N) -> B x B, whose diagonal holds the positives.

    Args:
        logits: (B, B * N).
        captions: N.
        pooling: mean: of the N logits. hardest: the maximum off the diagonal and the minimum on it, as the benchmark
            scores. hardest_as_published: the maximum everywhere. The released CLIP loss pools by maximum before it
            would take the minimum of the diagonal, so its positives are the easiest captions; this is there to
            reproduce it.
    """
    groups = logits.unflatten(1, (-1, captions))  # (B, B, N)
    if pooling == "mean":
        return groups.mean(dim=2)
    highest = groups.amax(dim=2)
    if pooling == "hardest_as_published":
        return highest
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return torch.where(diagonal, groups.amin(dim=2), highest)


def pool_positives(logits: Tensor, captions: int, pooling: Pooling = "mean") -> Tensor:
    """Pool the captions of each entry with its picture: B x (B * N) -> (B,), the positives of the negative loss.

    The released code takes the minimum here for `hardest`: only its CLIP loss pools by maximum first.
    """
    return pool_captions(logits, captions, "hardest" if pooling == "hardest_as_published" else pooling).diagonal()


def matching_loss(matching: Tensor) -> Tensor:
    """Return the CLIP loss of B x B logits: cross-entropy of rows and of columns, averaged."""
    target = torch.arange(len(matching), device=matching.device)
    return (F.cross_entropy(matching, target) + F.cross_entropy(matching.T, target)) / 2


def negative_loss(positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of raw logits, positives (B,) against 1 and negatives (B,) against 0.

    With no entry at all it is 0.
    """
    if not len(positives):
        return positives.sum() + negatives.sum()
    logits = torch.stack([positives, negatives], dim=1)  # (B, 2)
    target = logits.new_tensor([1.0, 0.0]).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, target)


def choose_captions(entry: str, captions: Sequence[str], choice: Captions, seed: int, visit: int) -> list[str]:
    """Return the captions of a visit: the first; a random one; or five.

    pick5 takes the first five. An entry with fewer repeats them in turn, so that every entry gives N texts.

    Args:
        entry: id of the entry.
        captions: its captions, at least one.
        choice: which.
        seed, visit: decide a random choice.
    """
    if choice == "first":
        return [captions[0]]
    if choice == "pick1":
        return [captions[_draw(entry, seed, f"caption/{visit}", len(captions))]]
    return [captions[at % len(captions)] for at in range(PICK)]


def choose_negative(
    entry: str, negatives: Sequence[Negative], kind: str, choice: NegativeChoice, seed: int, visit: int
) -> str | None:
    """Return the negative of a visit, or None.

    Args:
        entry: id of the entry.
        negatives: its negatives.
        kind: swaps, basic, layout, ... or "any".
        choice: "first", "random" (another for each visit) or "hardest" (the highest score; the first where none has
            one).
        seed, visit: decide a random choice.
    """
    fitting = [negative for negative in negatives if kind in ("any", negative.kind)]
    if not fitting:
        return None
    if choice == "random":
        return fitting[_draw(entry, seed, f"negative/{visit}", len(fitting))].text
    if choice == "hardest":
        return max(fitting, key=lambda negative: float("-inf") if negative.score is None else negative.score).text
    return fitting[0].text


def _draw(entry: str, seed: int, purpose: str, n: int) -> int:
    """Return a number below n that depends on seed, purpose and the entry alone."""
    return int(priority(seed, [entry], purpose)[0] % n)
