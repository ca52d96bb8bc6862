"""Projectors of joint-embedding methods: an MLP between the backbone and the loss, thrown away after training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn


def build_projector(
    width: int, hidden: Sequence[int], out: int, norm: bool = True, out_norm: bool = False, bias: bool = False
) -> nn.Sequential:
    """Return a projector: (B, D) -> (B, K), in hidden layers linear, BatchNorm, ReLU, and at last linear.

    Without hidden layers the last is all there is, the linear projector W of arXiv 2304.05369.

    Args:
        width: D.
        hidden: widths of the hidden layers.
        out: K.
        norm: whether hidden layers have BatchNorm, in the place of a bias.
        out_norm: whether the output is standardised by BatchNorm without weights (SimSiam, MoCo v3).
        bias: whether the last layer has one.
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([width, *hidden]):
        layers += [nn.Linear(before, after, bias=not norm), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    layers.append(nn.Linear([width, *hidden][-1], out, bias=bias))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(out, affine=False)] if out_norm else []))
