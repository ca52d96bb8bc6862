"""Processes and devices, by Fabric: one process, DDP, or FSDP (`fully_shard` on stages, models and the whole)."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from granary.curation.errors import UserError, needs
from granary.curation.ports import free_port
from granary.training.models.backbone import Backbone
from granary.training.models.vit import Block
from granary.training.recipe import Device

if TYPE_CHECKING:  # needed when a run begins, and in an extra
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import Strategy
    from torch.distributed.device_mesh import DeviceMesh


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads of the CPU inside of the block, and with as many as before after it.

    Args:
        count: None changes nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def meeting_port() -> Iterator[None]:
    """Choose the port at which processes that Fabric starts in the block meet, unless MASTER_PORT says it.

    Fabric takes STANDALONE_PORT, else one that the system may give away before the first process listens. What it
    notes in MASTER_PORT is taken back after the block: the next training of this process meets at another.
    """
    before = {name: os.environ.get(name) for name in ("MASTER_PORT", "STANDALONE_PORT")}
    os.environ.setdefault("STANDALONE_PORT", str(free_port()))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def make_fabric(device: Device) -> Fabric:
    """Return the Fabric of a run.

    Mixed precision is the loop's own autocast: Fabric's would round the random numbers of the views to bfloat16 too.

    Raises:
        UserError: there are not as many devices.
    """
    with needs("train"):
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import ModelParallelStrategy
    cuda = device.accelerator == "cuda" or (device.accelerator == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.device_count() < device.devices:
        raise UserError(
            f"device.devices: {device.devices} is not right: this machine has {torch.cuda.device_count()} CUDA devices"
        )
    strategy: str | Strategy = device.strategy
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(_sharded, device.devices * device.nodes, tensor_parallel_size=1)
    elif strategy == "auto" and device.devices * device.nodes > 1:
        strategy = "ddp"
    return Fabric(
        accelerator="cuda" if cuda else "cpu", strategy=strategy, devices=device.devices, num_nodes=device.nodes
    )


def all_agree(fabric: Fabric, *answers: bool) -> list[bool]:
    """Return each answer as all processes give it: true only where all say so."""
    if fabric.world_size == 1:
        return list(answers)
    votes = torch.tensor([float(answer) for answer in answers], device=fabric.device)
    return [bool(vote == fabric.world_size) for vote in fabric.all_reduce(votes, reduce_op="sum")]


def mean_of_all(fabric: Fabric, values: dict[str, float]) -> dict[str, float]:
    """Return numbers, which every process has by the same names, as their mean over the processes."""
    if fabric.world_size == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=fabric.device)
    mean = fabric.all_reduce(tensor, reduce_op="mean")
    assert isinstance(mean, torch.Tensor)
    return dict(zip(values, mean.tolist(), strict=True))


def slow_precision(device: torch.device, precision: str) -> list[str]:
    """Return a sentence where a run computes in bfloat16 on an x86 processor without units for it; else nothing.

    Args:
        device: that computes.
        precision: of the recipe.
    """
    known = device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if (
        precision == "32-true"
        or not known
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    ):
        return []
    return [
        f"device.precision: {precision} is several times slower than 32-true on this processor, which has no bfloat16 "
        "units (avx512_bf16 or amx_bf16)"
    ]


def _sharded(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard stages and blocks, then models, then the rest; teacher and student alike, so averages stay local."""
    processes = mesh["data_parallel"]
    backbones = [child for child in module.modules() if isinstance(child, Backbone)]
    stages = {stage for backbone in backbones for stage in backbone.stages()}
    parts = [child for child in module.modules() if child in stages or isinstance(child, Block)]
    for part in (*parts, *backbones):
        fully_shard(part, mesh=processes)
    fully_shard(module, mesh=processes)
    return module
