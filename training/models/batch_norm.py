"""BatchNorm (Ioffe and Szegedy 2015, arXiv 1502.03167) over the batch of all processes, on any device.

Shapes: B pictures of this process, C channels; N is the number of values of a channel on all processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """BatchNorm by the mean and variance of the batch of all processes; torch's SyncBatchNorm is for CUDA alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...); in evaluation mode by the running statistics, as BatchNorm."""
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _Normalised.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, var * (count / max(1, count - 1)))
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        """Take pictures, vectors and whatever else has channels."""

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics by those of a batch; with momentum None they are the mean of all batches."""
        share = self.momentum
        if self.num_batches_tracked is not None:  # a stage that is run again for its gradient has none
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if share is None else share
        self.get_buffer("running_mean").lerp_(mean, share or 0.0)
        self.get_buffer("running_var").lerp_(var, share or 0.0)


class _Normalised(torch.autograd.Function):
    """weight (x - mean) / sqrt(var + eps) + bias; mean and var are of all processes, and their gradients too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        mean, var, count = global_moments(x)
        std = (var + eps).sqrt()
        ctx.count = count
        ctx.save_for_backward(x, weight, mean, std)
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, std = ctx.saved_tensors
        gradient, others = gradients[0].float(), _all_but_channels(x)
        unit = (x - _spread(mean, x)) / _spread(std, x)
        sums = torch.stack([gradient.sum(others), (gradient * unit).sum(others)])
        of_bias, of_weight = sums.clone() if weight is not None else (None, None)
        dist.all_reduce(sums)
        level, slope = (_spread(part, x) for part in sums / ctx.count)
        scale = _spread((1 if weight is None else weight) / std, x)
        return (scale * (gradient - level - slope * unit)).to(x.dtype), of_weight, of_bias, None


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance of each channel over all processes, and the number of values.

    Args:
        x: (B, C, ...) of this process; B may differ between processes.

    Returns:
        (C,), (C,) float32 and N.
    """
    var, mean = torch.var_mean(x.float(), _all_but_channels(x), correction=0)
    count = mean.new_tensor([x.numel() // x.shape[1]])
    rows = [torch.empty(2 * len(mean) + 1, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, torch.cat([mean, var, count]))
    means, variances, counts = torch.stack(rows).split([len(mean), len(mean), 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(dim=0)
    return mean, (shares * (variances + (means - mean).square())).sum(dim=0), int(counts.sum())


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the buffers of each BatchNorm inside a module."""
    return [buffer for part in module.modules() if isinstance(part, _BatchNorm) for buffer in part.buffers()]


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Let each BatchNorm inside a module be one over the batch of all processes, with the same parameters and buffers.

    Args:
        module: is changed in place.
        device: it will run on; on CUDA the layers are torch's SyncBatchNorm.
    """
    kind = nn.SyncBatchNorm if device.type == "cuda" else GlobalBatchNorm
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _replaced(child, kind))
        else:
            synchronise(child, device)


def _replaced(norm: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.weight, new.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(new, name, buffer)
    return new.train(norm.training)


def _all_but_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """Return (C,) values so that they broadcast to x (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))
