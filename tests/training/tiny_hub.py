"""Tiny models of `transformers` of other families, made from their configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

FAMILIES: dict[str, dict[str, Any]] = {
    "mobilenet_v2": {"depth_multiplier": 0.1, "min_depth": 4, "expand_ratio": 2, "finegrained_output": False},
    "convnext": {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
}


def saved(family: str, folder: Path) -> Any:
    """Write a model of transformers with random weights, and how its pictures are prepared; returns it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family])
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    size = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    return model
