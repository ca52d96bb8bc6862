"""The losses of DINOv2, pure functions: Sinkhorn-Knopp or centred targets, DINO, iBOT and KoLeo.

Oquab et al. 2023 (arXiv 2304.07193), section 4. Shapes: B pictures, L local views, K prototypes, M masked patches,
R rows, D width. Targets q are rows of probabilities without gradient; logits z are those of the student.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
EPSILON = 1e-8  # of KoLeo, as in the authors' code
SAME = 1e-6  # unit features of one picture, computed twice, are nearer than this
TINY = 1e-30


def _in_float32(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Compute in float32 whatever the precision of the step: temperatures of 0.04 are too sharp for half precision."""

    @functools.wraps(function)
    def exact(first: Tensor, *rest: P.args, **named: P.kwargs) -> R:
        with torch.autocast(first.device.type, enabled=False):
            return function(first.float(), *rest, **named)

    return exact


def _over_processes(x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x, operation)
    return x


@torch.no_grad()
@_in_float32
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return targets that use all prototypes alike: exp(z / temperature), its columns and rows normalised in turn.

    The matrix is never rescaled itself: Q = diag(u) E diag(v), and u and v follow from products with E. Column sums go
    over the rows of all processes. A constant of a prototype cancels in the first normalisation of its column, so its
    largest logit is taken away; what is then taken from a row is kept in u. So neither side over- or underflows.

    Args:
        logits: (R, K) of the teacher.
        temperature: of the teacher.
        iterations: of both normalisations, columns (prototypes) first; at least 1.

    Returns:
        (R, K) float32; rows sum to 1, columns nearly to R / K.
    """
    scores = logits / temperature
    peaks = scores.amax(dim=0) if len(scores) else scores.new_full(scores.shape[1:], -torch.inf)
    scores -= _over_processes(peaks, dist.ReduceOp.MAX)
    heights = scores.amax(dim=1)
    plan, u = scores.sub_(heights[:, None]).exp_(), heights.exp_()  # E (R, K), u (R,)
    for _ in range(iterations):
        v = _over_processes(u @ plan, dist.ReduceOp.SUM).clamp_(min=TINY).reciprocal_()  # (K,)
        v /= v.max()  # the scale of v is free, and would drift
        u = (plan @ v).clamp_(min=TINY).reciprocal_()
    return plan.mul_(v).mul_(u[:, None])


class Centre(nn.Module):
    """The older targets of DINO: softmax((z - c) / temperature), c the running mean of the teacher's logits."""

    value: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self.seen: list[tuple[Tensor, int]] = []

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, seen: Tensor | None = None) -> Tensor:
        """(R, K) logits -> (R, K) targets, by the centre of the steps before.

        Args:
            logits: of the teacher.
            temperature: of the teacher.
            seen: (S, K) what `follow` then takes in, in training mode; by default the logits.
        """
        logits = logits.float()
        if self.training:
            seen = logits if seen is None else seen.float()
            self.seen.append((seen.sum(dim=0), len(seen)))
        return ((logits - self.value) / temperature).softmax(dim=1)

    def forget(self) -> None:
        """Drop what was seen and not followed: the step before was not taken."""
        self.seen.clear()

    @torch.no_grad()
    def follow(self) -> None:
        """Move the centre: c <- m c + (1 - m) mean of the logits seen, over all processes."""
        if not self.seen:
            return
        rows = self.value.new_tensor([sum(rows for _, rows in self.seen)])
        total = torch.cat([torch.stack([logits for logits, _ in self.seen]).sum(dim=0), rows])
        _over_processes(total, dist.ReduceOp.SUM)
        self.value.lerp_(total[:-1] / total[-1].clamp(min=1), 1 - self.momentum)
        self.seen.clear()


@_in_float32
def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return -sum_k q_k log softmax(z / temperature)_k: (..., K) logits, targets that broadcast to it -> (...)."""
    return -(F.log_softmax(logits / temperature, dim=-1) * targets).sum(dim=-1)


def entropies(targets: Tensor) -> Tensor:
    """Return H(q) = -sum_k q_k log q_k, (..., K) -> (...): the least that the cross-entropy of any logits can be."""
    return torch.special.entr(targets).sum(dim=-1)


def dino_losses(whole: Tensor, local: Tensor, targets: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return the loss of global and of local views: together the mean over all pairs of a teacher's and another view.

    L_g = (1 / T) sum_c mean_B CE(q_(other than c), z_c), L_l = (1 / T) sum_l sum_c mean_B CE(q_c, z_l), T = 2 + 2 L.

    Args:
        whole: (2, B, K) logits of the student for the global views.
        local: (L, B, K) for the local views; L may be 0.
        targets: (2, B, K) of the global views.
        temperature: of the student.
    """
    terms = 2 + 2 * len(local)
    first, second = (soft_cross_entropy(whole[c], targets[1 - c], temperature).mean() for c in range(2))
    # CE is linear in q, so one pass over z_l serves both targets
    return (first + second) / terms, soft_cross_entropy(local, targets.sum(dim=0), temperature).mean(
        dim=1
    ).sum() / terms


def ibot_loss(logits: Tensor, targets: Tensor, weights: Tensor, crops: int, temperature: float = 0.1) -> Tensor:
    """Return the loss of masked patches, (1 / crops) sum over crops of the mean over the crop's masked patches.

    Args:
        logits: (M, K) of the student at masked patches.
        targets: (M, K) of the teacher at the same patches, which it saw.
        weights: (M,) 1 / masked patches of the crop that the patch is of.
        crops: all crops, those without a mask among them.
        temperature: of the student.
    """
    return (soft_cross_entropy(logits, targets, temperature) * weights).sum() / crops


@_in_float32
def koleo_loss(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return -(1 / n) sum_i log(distance of unit feature i to its nearest neighbour) and how many have a double.

    A row at no distance from another (the same picture twice, or collapse) would count with 15 and a gradient of
    random direction; its term is left out. One row alone has no neighbour: the loss is 0.

    Args:
        features: (n, D) class tokens of one view, of the backbone, before any head.
    """
    if len(features) < 2:
        return features.sum() * 0, features.new_zeros(())
    x = F.normalize(features, dim=1, eps=EPSILON)
    with torch.no_grad():
        cosines = x @ x.T
        nearest = cosines.fill_diagonal_(-torch.inf).argmax(dim=1)
        double = F.pairwise_distance(x, x[nearest], eps=0.0) < SAME
    terms = (F.pairwise_distance(x, x[nearest], eps=EPSILON) + EPSILON).log()
    return -torch.where(double, 0.0, terms).mean(), double.sum().float()
