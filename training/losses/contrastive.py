"""The losses of CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343), on one process or several.

SigLIP's takes any similarities of pairs too, as those of Llip (arXiv 2405.00740) are, which are no products of vectors.

Shapes: N pairs of a batch over all processes, n of them on this one, D dimensions of the shared space. u_i is the image
and v_j the text, rows of unit length; S = U V^T has images as rows. The mean over processes of what a loss returns, and
of its gradients, is that of the whole batch on one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from granary.training.losses.processes import gathered


class Matches(NamedTuple):
    """Which texts of a batch belong to which pictures, over all processes.

    Args:
        keys: (N,) int64, 0 for a sample without a caption, equal where captions are.
        first, size: the rows of this process are first .. first + size - 1.
    """

    keys: Tensor
    first: int
    size: int

    def distinct(self) -> Matches:
        """Return them as if no two captions were equal."""
        numbers = torch.arange(1, len(self.keys) + 1, device=self.keys.device)
        return self._replace(keys=torch.where(self.keys == 0, 0, numbers))

    @property
    def local(self) -> Tensor:
        """(n,) int64, the numbers of the rows of this process."""
        return torch.arange(self.first, self.first + self.size, device=self.keys.device)

    def hidden(self, columns: Tensor) -> Tensor:
        """(n, columns) bool: neither a positive nor a negative: no caption, or the same one as that of the row."""
        keys, row_keys = self.keys[columns][None], self.keys[self.local][:, None]
        return ((keys == 0) | (keys == row_keys)) & (columns[None] != self.local[:, None])

    def mean(self, terms: Tensor) -> Tensor:
        """Return the sum of (n,) terms of local rows that have a caption, over this process' share of all that do."""
        known = self.keys != 0
        share = known.sum().clamp(min=1) * (self.size / len(self.keys))
        return torch.where(known[self.local], terms, 0).sum() / share


class Pairs(NamedTuple):
    """The pairs of a batch over all processes.

    Args:
        images, texts: (N, D) rows of unit length, with gradients to the processes that made them.
        keys, first, size: as in `Matches`.
    """

    images: Tensor
    texts: Tensor
    keys: Tensor
    first: int
    size: int

    @property
    def matches(self) -> Matches:
        """Which of the texts belong to which pictures."""
        return Matches(self.keys, self.first, self.size)

    def distinct(self) -> Pairs:
        """Return the pairs as if no two captions were equal."""
        return self._replace(keys=self.matches.distinct().keys)


def gathered_pairs(images: Tensor, texts: Tensor, keys: Tensor | None = None) -> Pairs:
    """Bring features of this process to unit length, in float32 or above, and gather those of all processes.

    Args:
        images, texts: (n, D).
        keys: (n,) as in `Pairs`; by default all captions differ.
    """
    count = len(images)
    wide = torch.promote_types(images.dtype, torch.float32)
    images, texts = (F.normalize(rows.to(wide), dim=1) for rows in (images, texts))
    made = torch.ones(count, dtype=torch.int64, device=images.device) if keys is None else keys
    (images, first), (texts, _), (made, _) = (gathered(rows) for rows in (images, texts, made))
    pairs = Pairs(images, texts, made, first, count)
    return pairs.distinct() if keys is None else pairs


def contrastive_loss(pairs: Pairs, scale: Tensor) -> Tensor:
    """Return (CE(L, arange N) + CE(L^T, arange N)) / 2 of the logits L = exp(alpha) S (arXiv 2103.00020, figure 3).

    Hidden columns take no part in a row's softmax. On several processes: this one's rows of L and of L^T.

    Args:
        pairs: of the batch.
        scale: alpha, (1,).
    """
    matches, everyone = pairs.matches, torch.arange(len(pairs.keys), device=pairs.keys.device)
    local, hidden = matches.local, matches.hidden(everyone)
    terms = []
    with torch.autocast(pairs.images.device.type, enabled=False):
        for rows, columns in ((pairs.images, pairs.texts), (pairs.texts, pairs.images)):
            logits = scale.exp() * (rows[local] @ columns.T)  # (n, N)
            terms.append(F.cross_entropy(logits.masked_fill(hidden, -math.inf), local, reduction="none"))
    return matches.mean(terms[0] + terms[1]) / 2


def sigmoid_loss(pairs: Pairs, scale: Tensor, bias: Tensor, chunk: int | None = None) -> Tensor:
    """Return `pairwise_sigmoid_loss` of S = U V^T.

    Args:
        pairs: this process' rows are summed, over all columns but hidden ones.
        scale, bias, chunk: as there.
    """
    matches = pairs.matches

    def similarities(columns: Tensor) -> Tensor:
        with torch.autocast(pairs.images.device.type, enabled=False):
            return pairs.images[matches.local] @ pairs.texts[columns].T

    return pairwise_sigmoid_loss(matches, similarities, scale, bias, chunk)


def pairwise_sigmoid_loss(
    matches: Matches,
    similarities: Callable[[Tensor], Tensor],
    scale: Tensor,
    bias: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """Return -(1 / N) sum_ij log sigmoid(y_ij L_ij), L = exp(t') S + b, y_ij = 1 if i = j, else -1 (2303.15343, eq. 2).

    Args:
        matches: this process' rows are summed, over all columns but hidden ones.
        similarities: numbers of columns (C,) -> (n, C) float32 or above, S of this process' rows.
        scale, bias: t' and b, (1,) each.
        chunk: columns at once; their logits are computed again in the backward pass and never all in memory.
    """
    everyone = torch.arange(len(matches.keys), device=matches.keys.device)
    if chunk is None:
        return matches.mean(_sigmoid_terms(matches, similarities, scale, bias, everyone))
    parts = [
        checkpoint(
            _sigmoid_terms, matches, similarities, scale, bias, columns, use_reentrant=False, preserve_rng_state=False
        )
        for columns in everyone.split(chunk)
    ]
    return matches.mean(torch.stack(parts).sum(dim=0))


def _sigmoid_terms(
    matches: Matches, similarities: Callable[[Tensor], Tensor], scale: Tensor, bias: Tensor, columns: Tensor
) -> Tensor:
    """Return (n,): -sum_j log sigmoid(y_ij L_ij) of some columns."""
    cosines = similarities(columns)
    with torch.autocast(cosines.device.type, enabled=False):
        logits = scale.exp() * cosines + bias  # (n, columns)
        sign = torch.where(columns[None] == matches.local[:, None], -1, 1)
        return F.softplus(sign * logits).masked_fill(matches.hidden(columns), 0).sum(dim=1)
