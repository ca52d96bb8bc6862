"""LARS: a learning rate for each layer (You et al. 2017, arXiv 1708.03888), as self-supervised training uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """d = g + decay w;  d <- trust |w| / |d| d;  v <- momentum v + d;  w <- w - lr v.

    That is the variant of MoCo v3, Barlow Twins and VICReg. Weight decay is coupled: it is part of the gradient, and of
    the norm below the fraction, where the paper adds the two norms and SwAV's code the decay after them. The learning
    rate is outside the momentum, as in torch.optim.SGD; the paper and SimCLR's code have it inside, which differs only
    while it changes. A weight or gradient of norm 0 has the factor 1. Biases, norms and scales are groups with
    `adapted` false: for these it is SGD.

    Args:
        groups: dictionaries with params, and lr, weight_decay or adapted where they are not the default.
        lr: learning rate.
        momentum: of the velocity v.
        trust: trust coefficient, eta in the paper.
        weight_decay: of the groups that say nothing.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, object]],
        lr: float,
        momentum: float = 0.9,
        trust: float = 1e-3,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": weight_decay, "adapted": True}
        super().__init__([dict(group) for group in groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move the parameters that have a gradient, and use the gradients up: they are d afterwards, not yet scaled.

        Args:
            closure: computes the gradients again.

        Returns:
            What `closure` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moved:
                self._move(moved, group)
        return loss

    def _move(self, parameters: Sequence[Tensor], group: Mapping[str, float]) -> None:
        """Take a step with some parameters of a group."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        weights = local(parameters)
        steps = local([parameter.grad for parameter in parameters if parameter.grad is not None])
        velocities = local([self.state[parameter]["momentum_buffer"] for parameter in parameters])
        if group["weight_decay"]:
            torch._foreach_add_(steps, weights, alpha=group["weight_decay"])
        ratios = trust_ratios(parameters, steps, group["trust"]) if group["adapted"] else None
        one_pass = weights[0].device.type == "cpu" and group["momentum"] > 0
        follow = follow_in_one_pass if one_pass else follow_op_by_op
        follow(weights, steps, velocities, ratios, group["momentum"], group["lr"])


def follow_op_by_op(
    weights: list[Tensor],
    steps: list[Tensor],
    velocities: list[Tensor],
    ratios: list[Tensor] | None,
    momentum: float,
    lr: float,
) -> None:
    """Set v <- momentum v + ratio d and w <- w - lr v, without asking the device for a number."""
    torch._foreach_mul_(velocities, momentum)
    if ratios is None:
        torch._foreach_add_(velocities, steps)
    else:
        torch._foreach_addcmul_(velocities, steps, ratios)
    torch._foreach_add_(weights, velocities, alpha=-lr)


def follow_in_one_pass(
    weights: list[Tensor],
    steps: list[Tensor],
    velocities: list[Tensor],
    ratios: list[Tensor] | None,
    momentum: float,
    lr: float,
) -> None:
    """Do what `follow_op_by_op` does in one pass over a weight: by the kernel of SGD, whose dampening is 1 - ratio."""
    factors = [1.0] * len(weights) if ratios is None else torch.stack(ratios).tolist()
    for weight, step, velocity, factor in zip(weights, steps, velocities, factors, strict=True):
        torch._fused_sgd_(
            [weight],
            [step],
            [velocity],
            weight_decay=0.0,
            momentum=momentum,
            lr=lr,
            dampening=1 - factor,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


def trust_ratios(parameters: Sequence[Tensor], steps: Sequence[Tensor], trust: float) -> list[Tensor]:
    """Return trust |w| / |d| of each parameter, as scalars; 1 where either norm is 0.

    Args:
        parameters: w, whole or sharded over processes.
        steps: d, the part of this process.
        trust: trust coefficient.
    """
    norms = torch.stack(torch._foreach_norm([*local(parameters), *steps]))
    if isinstance(parameters[0], DTensor):
        squares = norms.square()
        dist.all_reduce(squares, group=parameters[0].device_mesh.get_group())
        norms = squares.sqrt()
    of_weights, of_steps = norms.chunk(2)
    ratios = torch.where((of_weights > 0) & (of_steps > 0), trust * of_weights / of_steps, 1.0)
    return list(ratios.unbind())


def local(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the part of each tensor that this process holds: all of it, where it is not sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
