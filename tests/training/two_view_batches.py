"""Batches of two random views, and their pixels as a model is given them when nothing is changed."""

from __future__ import annotations

import torch
from torch import Tensor

from granary.training.models.backbone_config import BackboneConfig

PLAIN = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def batch_of(count: int = 4, local: int = 0, side: int = 16) -> dict[str, Tensor]:
    """Return `count` pictures with two views, and `local` smaller ones of half the side."""
    generator = torch.Generator().manual_seed(1)
    kinds = {"image": (2, side), "local": (local, side // 2)}
    batch = {
        name: torch.randint(0, 256, (count, views, size, size, 3), dtype=torch.uint8, generator=generator)
        for name, (views, size) in kinds.items()
        if views
    }
    draws = {f"{name}_draws": torch.rand(*views.shape[:2], 16, generator=generator) for name, views in batch.items()}
    return batch | draws


def plain_pixels(batch: dict[str, Tensor], config: BackboneConfig, view: int, name: str = "image") -> Tensor:
    """Return a view of each picture, (B, 3, S, S), normalised."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.mean, config.std))
    return (batch[name][:, view].permute(0, 3, 1, 2).float() / 255 - mean) / std
