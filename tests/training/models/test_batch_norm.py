"""BatchNorm of two processes is that of one with the whole batch: values, gradients, running statistics."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from granary.training.models.batch_norm import GlobalBatchNorm, synchronise


def loss_of(norm: nn.Module, x: Tensor) -> Tensor:
    """A sum, whose gradient differs from value to value."""
    return (norm(x).sin() * torch.arange(x[0].numel()).view(x[0].shape)).sum()


def trained(norm: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return what a layer says and learns of some batches."""
    answers = {}
    for number, batch in enumerate(batches):
        x = batch.clone().requires_grad_()
        loss_of(norm, x).backward()
        assert x.grad is not None
        answers[f"x {number}"] = x.grad
        answers[f"y {number}"] = norm(batch).detach()
    gradients = {f"gradient of {name}": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return {**answers, **gradients, **dict(norm.named_buffers())}


def on_one_of_two(rank: int, file: str, norm: nn.Module, batches: list[Tensor], sizes: list[int], out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    module = nn.Sequential(norm)
    synchronise(module, torch.device("cpu"))
    assert isinstance(module[0], GlobalBatchNorm)
    torch.save(trained(module[0], [batch.split(sizes)[rank] for batch in batches]), out / f"{rank}.pt")
    dist.destroy_process_group()


def of_two(norm: nn.Module, batches: list[Tensor], sizes: list[int], out: Path) -> list[dict[str, Tensor]]:
    context = multiprocessing.get_context("forkserver")
    norms = [copy.deepcopy(norm) for _ in range(2)]  # tensors are handed to processes in memory that they share
    arguments: list[Any] = [batches, sizes, out]
    work = [
        context.Process(target=on_one_of_two, args=(rank, str(out / "store"), norms[rank], *arguments))
        for rank in range(2)
    ]
    for process in work:
        process.start()
    for process in work:
        process.join(60)
        assert process.exitcode == 0
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    ("norm", "shape", "sizes"),
    [
        (nn.BatchNorm2d(3), (10, 3, 4, 5), [5, 5]),
        (nn.BatchNorm1d(6, momentum=None), (7, 6), [2, 5]),
        pytest.param(nn.BatchNorm2d(3, affine=False, eps=1e-2), (6, 3, 2, 2), [1, 5], marks=pytest.mark.slow),
        pytest.param(nn.BatchNorm1d(3, track_running_stats=False), (8, 3, 4), [4, 4], marks=pytest.mark.slow),
    ],
)
def test_two_processes_normalise_by_the_batch_of_both(
    norm: nn.Module, shape: tuple[int, ...], sizes: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    batches = [torch.randn(shape) * (number + 1) + 30 * number for number in range(2)]
    one, two = trained(copy.deepcopy(norm), batches), of_two(norm, batches, sizes, tmp_path)
    assert one.keys() == two[0].keys() == two[1].keys()
    for name, expected in one.items():
        parts = [answers[name] for answers in two]
        if name.startswith(("x ", "y ")):
            together = torch.cat(parts)
        else:
            together = sum(parts) if name.startswith("gradient") else parts[0]
        torch.testing.assert_close(together, expected, atol=2e-4, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    running = [name for name in one if name.startswith("running")]
    assert all(torch.equal(two[0][name], two[1][name]) for name in running)


def half_precision(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=1)
    norm, module = nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))
    synchronise(module, torch.device("cpu"))
    x = torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last).bfloat16()
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        expected, y = norm(one), module(two)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, atol=2e-2, rtol=2e-2)
    for result in (expected, y):
        (result.float() ** 3).sum().backward()
    assert two.grad is not None
    torch.testing.assert_close(two.grad, one.grad, atol=0.1, rtol=0.1)
    torch.testing.assert_close(module[0].running_var, norm.running_var, atol=1e-3, rtol=1e-3)
    dist.destroy_process_group()


def test_bfloat16_goes_in_and_out_with_statistics_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(1)
    process = multiprocessing.get_context("forkserver").Process(
        target=half_precision, args=(0, str(tmp_path / "store"))
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_parameters_and_buffers_are_the_same_ones_and_evaluation_needs_no_other_process() -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.LayerNorm(5))
    module(torch.randn(4, 3, 5, 5))
    module[1][0].bias.requires_grad_(False)
    before, names = list(module.parameters()), list(module.state_dict())
    x = torch.randn(2, 3, 5, 5)
    expected = module.eval()(x)
    synchronise(module, torch.device("cpu"))
    assert all(one is two for one, two in zip(before, module.parameters(), strict=True))
    assert list(module.state_dict()) == names
    assert not module[1][0].training
    torch.testing.assert_close(module(x), expected)


def test_on_cuda_it_is_torchs() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4))
    synchronise(module, torch.device("cuda"))
    assert type(module[0]) is nn.SyncBatchNorm
