"""Where a patch is: fixed sine-cosine tables, interpolation to other grids, rotary angles.

Grids are read row by row: patch number = row * columns + column.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROTARY_BASE = 100.0  # wavelengths of 2 pi to 200 pi patches: grids have tens of patches a side, not thousands


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return fixed 2-D positions (rows * columns, width) float32.

    The first half of the channels encodes the column, the second the row; each is the sines, then the cosines, of the
    index times the frequencies 10000^(-k / h), k = 0 .. h - 1, h = width / 4 (I-JEPA, arXiv 2301.08243).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [index.flatten()[:, None] * frequencies for index in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


def interpolated(positions: Tensor, grid: int, rows: int, columns: int, antialias: bool) -> Tensor:
    """Return positions (1, grid * grid, D) bicubically resized to (1, rows * columns, D); the same at the same grid."""
    if (rows, columns) == (grid, grid):
        return positions
    plane = positions.unflatten(1, (grid, grid)).permute(0, 3, 1, 2).float()
    plane = F.interpolate(plane, (rows, columns), mode="bicubic", antialias=antialias)
    return plane.flatten(2).transpose(1, 2).to(positions.dtype)


def rotary_angles(grid: int, rows: int, columns: int, channels: int) -> Tensor:
    """Return the angles (rows * columns, channels) by which queries and keys of a head turn (Su et al. 2021).

    Channels come in halves that turn together; in each half the first part follows the row, the second the column.
    A grid of another size spans the coordinates of `grid` x `grid` patches.
    """
    frequencies = ROTARY_BASE ** (-torch.arange(channels // 4, dtype=torch.float32) / (channels // 4))
    row, column = (
        (torch.arange(count, dtype=torch.float32) + 0.5) * (grid / count) for count in (rows, columns)
    )  # in patches of the native grid
    row, column = torch.meshgrid(row, column, indexing="ij")
    angles = torch.cat([index.flatten()[:, None] * frequencies for index in (row, column)], dim=1)
    return torch.cat([angles, angles], dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn (B, H, T, channels) by angles (B or 1, 1, T, channels): x cos + (-x_2, x_1) sin, by halves x_1, x_2."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)
