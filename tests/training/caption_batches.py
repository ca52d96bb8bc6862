"""Batches of noise with captions, as the loader gives them."""

from __future__ import annotations

from typing import Any

import torch


def batch_of(captions: list[list[str]], seed: int = 0) -> dict[str, Any]:
    """Return pictures of 16 px, drawn by the seed, with their captions."""
    generator, count = torch.Generator().manual_seed(seed), len(captions)
    return {
        "image": torch.randint(0, 256, (count, 1, 16, 16, 3), dtype=torch.uint8, generator=generator),
        "image_draws": torch.rand(count, 1, 16, generator=generator),
        "captions": captions,
        "id": [f"id{i}" for i in range(count)],
    }
