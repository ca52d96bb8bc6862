"""A model whose files are cut short or hold wrong numbers is one sentence, wherever it is loaded, and soon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_clip import tiny_clip

from granary.curation.encoders import load_encoder
from granary.curation.errors import UserError
from granary.pipelines.engine.encoders import LOADERS
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.registry import load_model
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

WRONG: list[dict[str, Any]] = [
    {"width": "wide"},
    {"width": 24.5},
    {"width": 10**9},
    {"depth": -1},
    {"depth": 10**9},
    {"heads": 0},
    {"patch_size": 0},
    {"img_size": 8 * 10**6},
    {"mlp_ratio": float("nan")},
    {"mlp_ratio": float("inf")},
    {"mlp_ratio": 1e9},
    {"registers": -2},
    {"mean": [0.5]},
    {"std": [0.0, 0.0, 0.0]},
    {"norm_eps": None},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_wrong_numbers_in_a_model_of_ours(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = str(tmp_path)
    VisionTransformer(ViTConfig(img_size=32, patch_size=8, width=24, depth=2, heads=2)).save(folder)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(UserError, match="holds no model that granary can read"):
        load_model(folder)
    with pytest.raises(UserError, match=f"encoder 'granary:{folder}': .* saved by granary"):
        load_encoder(f"granary:{folder}", "cpu", LOADERS["granary"])


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of transformers with its image processor."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def refused(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(f"hf:{folder}")
    with pytest.raises(UserError, match=f"encoder 'hf:{folder}'"):
        load_encoder(f"hf:{folder}", "cpu")


@pytest.mark.parametrize("length", [0, 4, 200, -100])
def test_a_broken_download(length: int, vit: Path, tmp_path: Path) -> None:
    folder = copied(vit, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": -24},
        {"hidden_size": "24"},
        {"hidden_size": 48},
        {"num_attention_heads": 0},
        {"patch_size": 0},
        {"num_hidden_layers": "two"},
        {"model_type": 7},
        {"hidden_act": "none"},
    ],
    ids=str,
)
def test_wrong_numbers_in_a_model_of_transformers(changes: dict[str, Any], vit: Path, tmp_path: Path) -> None:
    folder = copied(vit, tmp_path / "model")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    refused(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_cut_file_of_an_image_text_model(file: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny_clip().save(str(tmp_path))
    part = tmp_path / file
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(UserError, match="holds no CLIP-style model"):
        ClipModel.load(str(tmp_path), "cpu")
