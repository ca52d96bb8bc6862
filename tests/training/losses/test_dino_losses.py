"""The losses of DINOv2: Sinkhorn-Knopp against loops and optimal transport, closed forms, torch's cross-entropy."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from slow_dino import slow_sinkhorn
from torch import Tensor

from granary.training.losses.self_distillation import (
    Centre,
    dino_losses,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
    soft_cross_entropy,
)

# -- DINO ------------------------------------------------------------------------------------------------------------


def test_views_never_meet_themselves() -> None:
    """Targets of view c are prototype c; a student view that says c too, and nothing else, would have no loss."""
    targets = F.one_hot(torch.tensor([[0] * 3, [1] * 3]), 4).float()  # (2, B, K)
    whole = 1e3 * targets
    alike, _ = dino_losses(whole, whole[:0], targets)
    crossed, _ = dino_losses(whole.flip(0), whole[:0], targets)
    assert alike == pytest.approx(1e4)  # every pair is of two views: 1000 / 0.1 each
    assert crossed == 0


@pytest.mark.parametrize("views", [0, 1, 4])
def test_the_loss_is_the_mean_over_ordered_pairs(views: int) -> None:
    torch.manual_seed(3)
    targets = torch.rand(2, 5, 7).softmax(dim=-1)
    whole, local = torch.randn(2, 5, 7), torch.randn(views, 5, 7)
    pairs = []
    for c in range(2):
        for v, view in enumerate([*whole, *local]):
            if v != c:
                pairs += [F.cross_entropy(view / 0.1, targets[c])]
    assert len(pairs) == 2 + 2 * views
    assert sum(dino_losses(whole, local, targets)) == pytest.approx(float(sum(pairs) / len(pairs)), rel=1e-5)


def test_a_certain_target_gives_torchs_cross_entropy_at_the_students_temperature() -> None:
    torch.manual_seed(4)
    logits, labels = torch.randn(6, 9, requires_grad=True), torch.randint(0, 9, (6,))
    ours = soft_cross_entropy(logits, F.one_hot(labels, 9).float(), 0.1).mean()
    theirs = F.cross_entropy(logits / 0.1, labels)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


# -- Sinkhorn-Knopp --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "prototypes"), [(64, 16), (16, 64), (1, 5)])
def test_sinkhorn_equals_the_paper_and_its_rows_are_distributions(rows: int, prototypes: int) -> None:
    torch.manual_seed(6)
    logits = torch.rand(rows, prototypes) * 2 - 1
    ours = sinkhorn_knopp(logits, 0.07)
    torch.testing.assert_close(ours, slow_sinkhorn(logits, 0.07).float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours.sum(dim=1), torch.ones(rows), atol=1e-6, rtol=0)


def test_prototypes_are_used_alike_nearly_after_three_rounds_and_exactly_after_many() -> None:
    torch.manual_seed(7)
    logits = 0.15 * torch.randn(256, 16)
    one, three, many = (
        float((sinkhorn_knopp(logits, 0.07, rounds).sum(dim=0) / (256 / 16) - 1).abs().max()) for rounds in (1, 3, 300)
    )
    assert many < 1e-4 < three < 0.05 < one


def test_sinkhorn_after_many_rounds_is_the_optimal_transport_of_a_log_domain_loop() -> None:
    torch.manual_seed(8)
    logits = torch.randn(12, 5).double() / 3
    u, v = torch.zeros(12).double(), torch.zeros(5).double()
    for _ in range(500):
        v = math.log(12 / 5) - torch.logsumexp(logits / 0.2 + u[:, None], dim=0)
        u = -torch.logsumexp(logits / 0.2 + v, dim=1)
    plan = (logits / 0.2 + u[:, None] + v).exp()
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.2, 500), plan.float(), atol=1e-5, rtol=1e-4)


def test_sinkhorn_of_constants_is_uniform_and_of_a_large_diagonal_a_permutation() -> None:
    torch.testing.assert_close(sinkhorn_knopp(torch.full((6, 4), 0.3), 0.04), torch.full((6, 4), 0.25))
    order = torch.randperm(8)
    torch.testing.assert_close(sinkhorn_knopp(2 * torch.eye(8)[order], 0.05), torch.eye(8)[order], atol=1e-6, rtol=0)


def test_a_centre_before_sinkhorn_is_dead_code_and_large_logits_do_not_overflow() -> None:
    torch.manual_seed(9)
    logits = torch.rand(32, 8) * 2 - 1
    plan = sinkhorn_knopp(logits, 0.05)
    torch.testing.assert_close(sinkhorn_knopp(logits + torch.randn(8), 0.05), plan, atol=2e-6, rtol=1e-4)
    torch.testing.assert_close(sinkhorn_knopp(logits + 100, 0.05), plan, atol=1e-4, rtol=1e-2)
    half = sinkhorn_knopp((logits * 8).half(), 0.04)  # exp(200) is beyond float32
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(dim=1), torch.ones(32), atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn_knopp(logits, 0.05), plan)


def part_of_sinkhorn(rank: int, file: str, logits: Tensor, sizes: list[int], answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    centre = Centre(logits.shape[1], 0.9)
    own = logits.split(sizes)[rank]
    centre(own, 0.1)
    centre.follow()
    answers.put((rank, sinkhorn_knopp(own, 0.05).numpy(), centre.value.numpy()))
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [[5, 7], pytest.param([0, 12], marks=pytest.mark.slow)])
def test_targets_of_two_processes_are_those_of_one(sizes: list[int], tmp_path: Path) -> None:
    """R counts the rows of all processes, also where they have unlike numbers of masked patches, or none."""
    torch.manual_seed(10)
    logits, context = torch.randn(12, 6), multiprocessing.get_context("forkserver")
    answers = context.Queue()
    work = [
        context.Process(target=part_of_sinkhorn, args=(rank, str(tmp_path / "store"), logits, sizes, answers))
        for rank in range(2)
    ]
    for process in work:
        process.start()
    found = sorted((answers.get(timeout=60) for _ in work), key=lambda answer: answer[0])
    for process in work:
        process.join()
    both = torch.from_numpy(np.concatenate([plan for _, plan, _ in found]))
    torch.testing.assert_close(both, sinkhorn_knopp(logits, 0.05), atol=1e-6, rtol=1e-4)
    for _, _, centre in found:
        torch.testing.assert_close(torch.from_numpy(centre), 0.1 * logits.mean(dim=0))


# -- centring --------------------------------------------------------------------------------------------------------


def test_the_centre_follows_the_teacher_after_it_was_used() -> None:
    torch.manual_seed(11)
    centre, logits = Centre(5, 0.9), torch.randn(4, 5)
    torch.testing.assert_close(centre(logits, 0.1), (logits / 0.1).softmax(dim=1))
    centre.follow()
    torch.testing.assert_close(centre.value, 0.1 * logits.mean(dim=0))
    torch.testing.assert_close(centre(logits, 0.1), ((logits - 0.1 * logits.mean(dim=0)) / 0.1).softmax(dim=1))


# -- iBOT ------------------------------------------------------------------------------------------------------------


def test_the_patch_loss_counts_crops_without_masks_and_ignores_unmasked_patches() -> None:
    """The mean over 2B crops: with half of them masked, half of the mean over those."""
    torch.manual_seed(12)
    masks = torch.zeros(4, 6, dtype=torch.bool)
    masks[0, :2], masks[2, 1:5] = True, True
    logits, targets = torch.randn(4, 6, 5), torch.randn(4, 6, 5).softmax(dim=-1)
    weights = (1 / masks.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(masks)[masks]
    loss = ibot_loss(logits[masks], targets[masks], weights, 4)
    masked = [F.cross_entropy(logits[c][masks[c]] / 0.1, targets[c][masks[c]]) for c in (0, 2)]
    torch.testing.assert_close(loss, sum(masked) / 4)


# -- KoLeo -----------------------------------------------------------------------------------------------------------


def test_koleo_has_its_closed_forms_and_knows_no_scale() -> None:
    assert float(koleo_loss(torch.eye(9))[0]) == pytest.approx(-math.log(2) / 2, abs=1e-6)
    angles = 2 * math.pi * torch.arange(16) / 16
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert float(koleo_loss(circle)[0]) == pytest.approx(-math.log(2 * math.sin(math.pi / 16)), abs=1e-5)
    torch.manual_seed(13)
    x = torch.randn(10, 6)
    torch.testing.assert_close(koleo_loss(10 * x)[0], koleo_loss(x)[0])


def test_koleo_of_doubles_and_of_one_row_is_finite_and_said() -> None:
    x = torch.randn(6, 16)
    x[3] = x[0]
    rows = x.clone().requires_grad_()
    loss, doubles = koleo_loss(rows)
    loss.backward()
    assert doubles == 2
    assert rows.grad is not None
    assert rows.grad.abs().max() < 100
    others = F.normalize(x, dim=1)
    distances = torch.cdist(others, others).fill_diagonal_(9)
    expected = -sum(distances[i].min().log() for i in (1, 2, 4, 5)) / 6
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    alone, none = koleo_loss(torch.randn(1, 16, requires_grad=True))
    assert (float(alone.detach()), float(none)) == (0, 0)
