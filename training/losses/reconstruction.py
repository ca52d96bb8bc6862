"""Losses of masked image models: patches of pixels, as they are or standardised, and errors on what was masked.

Shapes: B pictures, N patches in rows of a grid, p pixels of a patch's side. A patch is p * p * 3 numbers, row by row,
the three channels of a pixel together. Masks are (B, N) bool, true where a patch was masked. Where all pictures have as
many masked patches, the mean over processes of a loss is that of the whole batch on one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPSILON = 1e-6  # added to the variance of a patch, as in the authors' code of MAE


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """Return the patches (B, N, p * p * 3) of pictures (B, 3, h, w)."""
    blocks = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, p, p)
    return blocks.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Return the square pictures (B, 3, S, S) of patches (B, N, p * p * 3): the inverse of `patchify`."""
    grid = math.isqrt(patches.shape[1])
    blocks = patches.unflatten(2, (patch, patch, 3)).unflatten(1, (grid, grid))  # (B, rows, columns, p, p, 3)
    return blocks.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def patch_scale(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (B, N, 1): the variance is the unbiased one."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + EPSILON).sqrt()


def standardised(patches: Tensor) -> Tensor:
    """Return patches (B, N, p * p * 3) less their own means, over their own standard deviations (MAE, section 4.1)."""
    mean, std = patch_scale(patches)
    return (patches - mean) / std


def masked_mean(errors: Tensor, masked: Tensor) -> Tensor:
    """Return the mean of errors (B, N) over the masked patches alone: sum(masked * errors) / sum(masked)."""
    return (errors * masked).sum() / masked.sum()


def squared_error(predicted: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
    """Return MAE's loss (arXiv 2111.06377): the mean squared error of masked patches, in float32 or above.

    Args:
        predicted, patches: (B, N, p * p * 3).
        masked: (B, N) bool.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        return masked_mean(_wide(predicted).sub(_wide(patches)).square().mean(dim=2), masked)


def absolute_error(predicted: Tensor, patches: Tensor, masked: Tensor) -> Tensor:
    """Return SimMIM's loss (arXiv 2111.09886, equation 1): the mean absolute error of masked pixels.

    Args:
        predicted, patches: (B, N, p * p * 3).
        masked: (B, N) bool.
    """
    with torch.autocast(predicted.device.type, enabled=False):
        return masked_mean(_wide(predicted).sub(_wide(patches)).abs().mean(dim=2), masked)


@torch.no_grad()
def nearest_codes(patches: Tensor, codebook: Tensor) -> Tensor:
    """Return the numbers of the nearest codes (K, P) of patches (..., P) by Euclidean distance, (...) int64."""
    with torch.autocast(patches.device.type, enabled=False):
        patches, codebook = _wide(patches), _wide(codebook)
        return (patches @ codebook.T - codebook.square().sum(dim=1) / 2).argmax(dim=-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
