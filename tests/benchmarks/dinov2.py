"""The losses of DINOv2, targets included, against the plain formulation: same logits, same masks.

    python -m tests.benchmarks.dinov2 [threads] [folder of a checkout of facebookresearch/dinov2]

One round is what a step does after the heads: Sinkhorn-Knopp of class tokens and of masked patches, DINO, iBOT, KoLeo,
and the gradient of their sum for the student's logits. The reference follows the published algorithm line by line: the
matrix is rescaled in every half of every iteration, and every pair of views has its own pass. With a folder the
authors' own loss classes run as well. Times are the best of several interleaved rounds; processor time is printed too,
since it does not grow when the machine is shared. Values and gradients are compared first.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from granary.training.losses.self_distillation import dino_losses, ibot_loss, koleo_loss, sinkhorn_knopp
from granary.training.masking.block_wise import draw_block_masks

TEMPERATURE = 0.05
SIZES = {  # pictures, local views, prototypes, patches along a side, width
    "tiny, K 2,048, batch 64": (64, 4, 2048, 8, 128),
    "paper's K 65,536, batch 8": (8, 8, 65536, 14, 1024),
}


class Answers(NamedTuple):
    """What the heads said: class tokens (2B, K), patches (M, K) of the teacher; of the student also local views."""

    taught: Tensor
    taught_patches: Tensor
    whole: Tensor
    local: Tensor
    patches: Tensor
    features: Tensor
    masks: Tensor

    @property
    def weights(self) -> Tensor:
        """1 / masked patches of the crop, for each masked patch: (M,)."""
        return (1 / self.masks.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(self.masks)[self.masks]


def answers(size: str) -> Answers:
    """Draw logits as unit vectors give them, in -1 .. 1."""
    batch, views, k, grid, width = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    masks = torch.from_numpy(draw_block_masks(2 * batch, grid, 0.5, (0.1, 0.5), np.random.default_rng(0)))
    rows = (2 * batch, int(masks.sum()), 2 * batch, views * batch, int(masks.sum()))
    logits = [torch.rand(n, k, generator=generator) * 2 - 1 for n in rows]
    for student in logits[2:]:
        student.requires_grad_()
    features = torch.randn(2 * batch, width, generator=generator, requires_grad=True)
    return Answers(*logits, features, masks)


def ours(given: Answers, views: int) -> Tensor:
    """Return the loss by granary."""
    wanted = sinkhorn_knopp(given.taught, TEMPERATURE).unflatten(0, (2, -1))
    wanted_patches = sinkhorn_knopp(given.taught_patches, TEMPERATURE)
    whole, local = given.whole.unflatten(0, (2, -1)), given.local.unflatten(0, (views, -1))
    loss = sum(dino_losses(whole, local, wanted))
    loss = loss + ibot_loss(given.patches, wanted_patches, given.weights, len(given.masks))
    return loss + 0.1 * sum(koleo_loss(view)[0] for view in given.features.chunk(2))


def plain_sinkhorn(logits: Tensor) -> Tensor:
    """Return targets by the published algorithm."""
    q = (logits / TEMPERATURE).exp().t()
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=1, keepdim=True)
        q = q / prototypes
        q = q / q.sum(dim=0, keepdim=True)
        q = q / samples
    return (q * samples).t()


def plain_koleo(features: Tensor) -> Tensor:
    """Return KoLeo by the published algorithm."""
    x = F.normalize(features, dim=1, eps=1e-8)
    products = x @ x.t()
    products.fill_diagonal_(-1)
    return -(F.pairwise_distance(x, x[products.max(dim=1).indices], eps=1e-8) + 1e-8).log().mean()


def reference(given: Answers, views: int) -> Tensor:
    """Return the loss by the published algorithm."""
    with torch.no_grad():
        wanted, wanted_patches = plain_sinkhorn(given.taught).chunk(2), plain_sinkhorn(given.taught_patches)
    loss, terms = torch.zeros(()), 2 + 2 * views
    for student in given.local.chunk(views):
        log_p = F.log_softmax(student / 0.1, dim=1)
        for q in wanted:
            loss = loss - (q * log_p).sum(dim=1).mean() / terms
    crossed = torch.cat(wanted[::-1])
    loss = loss - 2 * (crossed * F.log_softmax(given.whole / 0.1, dim=1)).sum(dim=1).mean() / terms
    entropies = -(wanted_patches * F.log_softmax(given.patches / 0.1, dim=1)).sum(dim=1)
    loss = loss + (entropies * given.weights).sum() / len(given.masks)
    return loss + 0.1 * sum(plain_koleo(view) for view in given.features.chunk(2))


def authors(folder: str) -> Callable[[Answers, int], Tensor]:
    """Return the loss by the authors' classes, from a checkout of their code; single process."""
    sys.path.insert(0, folder)
    from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss  # type: ignore[import-not-found]

    store = f"file://{tempfile.mkdtemp()}/store"  # their iBOT loss wants a process group
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    koleo = KoLeoLoss()
    made: dict[int, Any] = {}

    def loss(given: Answers, views: int) -> Tensor:
        k, terms = given.whole.shape[1], 2 + 2 * views
        dino, ibot = made.setdefault(k, (DINOLoss(k), iBOTPatchLoss(k)))
        crossed = torch.cat(given.taught.chunk(2)[::-1])  # they swap before Sinkhorn
        wanted = dino.sinkhorn_knopp_teacher(crossed, teacher_temp=TEMPERATURE).view(2, -1, k)
        count = torch.tensor([len(given.taught_patches)])
        wanted_patches = ibot.sinkhorn_knopp_teacher(given.taught_patches, TEMPERATURE, count)
        total = dino(list(given.local.chunk(views)), list(wanted)) / terms
        total = total + dino([given.whole], [wanted.flatten(0, 1)]) * 2 / terms
        total = total + ibot.forward_masked(
            given.patches, wanted_patches, student_masks_flat=given.masks, masks_weight=given.weights
        )
        return total + 0.1 * sum(koleo(view) for view in given.features.chunk(2))

    return loss


def compare(size: str, rounds: int, others: dict[str, Callable[[Answers, int], Tensor]]) -> None:
    """Print the time of each, after checking that values and gradients agree."""
    given, views = answers(size), SIZES[size][1]
    students = [given.whole, given.local, given.patches, given.features]
    losses = {"granary": ours, **others}
    best = {name: [float("inf")] * 2 for name in losses}
    for number in range(rounds):
        found = {}
        for name, loss in losses.items():
            wall, used = time.perf_counter(), time.process_time()
            value = loss(given, views)
            gradients = torch.autograd.grad(value, students)
            spent = time.perf_counter() - wall, time.process_time() - used
            best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
            if number == 0:
                found[name] = value.detach(), gradients
                torch.testing.assert_close(value.detach(), found["granary"][0], atol=1e-4, rtol=1e-4)
                for one, other in zip(gradients, found["granary"][1], strict=True):
                    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)
    print(f"{size}, {torch.get_num_threads()} threads, best of {rounds} rounds; values and gradients agree")
    for name, (wall, used) in best.items():
        ratio = f"granary is {wall / best['granary'][0]:.2f} x (wall), {used / best['granary'][1]:.2f} x (processor)"
        print(f"  {name:<22}{wall * 1e3:>8.0f} ms {used * 1e3:>8.0f} ms of processor time   {ratio}", flush=True)


def main() -> None:
    """Print both sizes."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    others: dict[str, Callable[[Answers, int], Tensor]] = {"reference": reference}
    if len(sys.argv) > 2:
        others["authors' classes"] = authors(sys.argv[2])
    compare("tiny, K 2,048, batch 64", 10, others)
    compare("paper's K 65,536, batch 8", 4, others)


if __name__ == "__main__":
    main()
