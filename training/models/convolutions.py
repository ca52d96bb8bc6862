"""Convolutions with their norms: what ResNets and the convolutional stem of a Vision Transformer are made of."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


class ConvNorm(nn.Sequential):
    """A convolution without bias, its BatchNorm and, but at the end of a branch, ReLU: (B, C, h, w) -> (B, C', h', w').

    Args:
        inputs, outputs: channels.
        kernel: pixels of the convolution's square; the border is padded by half of it.
        stride: of the convolution.
        relu: whether ReLU follows.
        gain: the norm's initial weight.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True, gain: float = 1.0
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015, arXiv 1502.01852
        norm = nn.BatchNorm2d(outputs)
        nn.init.constant_(norm.weight, gain)
        super().__init__(conv, norm, *([nn.ReLU(inplace=True)] if relu else []))


def conv_stem(width: int, patch_size: int, bias: bool) -> nn.Sequential:
    """Return the stem of Xiao et al. 2021 (arXiv 2106.14881): (B, 3, h, w) -> (B, D, h / patch, w / patch).

    A patch of 2^k pixels takes k convolutions of 3 x 3 and stride 2, each with BatchNorm and ReLU, whose channels
    double up to D, and a 1 x 1 convolution. A token has seen its patch and patch - 1 pixels above it and to its left.

    Args:
        width: D.
        patch_size: a power of 2.
        bias: whether the 1 x 1 convolution has one.
    """
    count = patch_size.bit_length() - 1
    channels = [3, *(max(1, width >> (count - 1 - number)) for number in range(count))]
    last = nn.Conv2d(channels[-1], width, 1, bias=bias)
    nn.init.trunc_normal_(last.weight, std=0.02)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    return nn.Sequential(*(ConvNorm(*pair, 3, 2) for pair in pairwise(channels)), last)
