"""Weights carried from and to `transformers`: equal outputs, for every kind, both ways, through files too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from granary.curation.errors import UserError
from granary.training.models.export import export
from granary.training.models.registry import load_model
from granary.training.models.vit import VisionTransformer, ViTConfig
from granary.training.models.weights import from_transformers, to_transformers

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
DINO = {"layerscale_value": 0.7, "drop_path_rate": 0.0}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model, DINO),
    "dinov2 swiglu": (transformers.Dinov2Config, transformers.Dinov2Model, {**DINO, "use_swiglu_ffn": True}),
    "dinov2 registers": (
        transformers.Dinov2WithRegistersConfig,
        transformers.Dinov2WithRegistersModel,
        {**DINO, "num_register_tokens": 3},
    ),
    "ijepa": (transformers.IJepaConfig, transformers.IJepaModel, {"intermediate_size": 96}),
    "clip": (transformers.CLIPVisionConfig, transformers.CLIPVisionModel, {"intermediate_size": 96}),
    "clip gelu": (
        transformers.CLIPVisionConfig,
        transformers.CLIPVisionModel,
        {"intermediate_size": 72, "hidden_act": "gelu"},
    ),
}


def theirs(kind: str) -> Any:
    """A model of transformers whose weights are all random, none at 0 or 1."""
    torch.manual_seed(1)
    config, model, settings = KINDS[kind]
    built = model(config(**SIZES, **settings)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


def their_tokens(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    output = model(pixels)
    if model.config.model_type != "clip_vision_model":
        return output.last_hidden_state
    norm = getattr(model, "vision_model", model).post_layernorm
    tokens = norm(output.last_hidden_state)
    torch.testing.assert_close(tokens[:, 0], output.pooler_output)
    return tokens


def our_tokens(model: VisionTransformer, pixels: torch.Tensor) -> torch.Tensor:
    tokens = model(pixels)
    first = [tokens.cls[:, None]] if model.config.class_token else []
    return torch.cat([*first, tokens.registers, tokens.patches], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_outputs_equal_those_of_transformers(kind: str) -> None:
    model, pixels = theirs(kind), torch.randn(2, 3, 32, 32)
    ours = from_transformers(model)
    torch.testing.assert_close(our_tokens(ours, pixels), their_tokens(model, pixels), atol=1e-5, rtol=1e-5)
    back = to_transformers(ours)
    assert type(back) is type(model)
    torch.testing.assert_close(their_tokens(back, pixels), their_tokens(model, pixels), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_encoder_of_a_masked_autoencoder_sees_all_patches(tmp_path: Path) -> None:
    """Theirs hides and shuffles patches by noise; with none hidden and rising noise it is a plain encoder."""
    torch.manual_seed(1)
    settings = {**SIZES, "intermediate_size": 96, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    whole = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**settings, decoder_num_hidden_layers=1))
    whole.save_pretrained(tmp_path)  # as published: with its decoder
    pixels = torch.randn(2, 3, 32, 32)
    theirs = transformers.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    expected = theirs(pixels, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    ours = load_model(f"hf:{tmp_path}")
    assert isinstance(ours, VisionTransformer)
    torch.testing.assert_close(our_tokens(ours, pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 registers"])
@torch.inference_mode()
def test_pictures_of_another_size_give_the_same_too(kind: str) -> None:
    model, pixels = theirs(kind), torch.randn(1, 3, 40, 24)
    ours = from_transformers(model)
    torch.testing.assert_close(our_tokens(ours, pixels), their_tokens(model, pixels), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_masked_patches_equal_those_of_transformers() -> None:
    model, pixels = theirs("dinov2"), torch.randn(2, 3, 32, 32)
    masked = torch.rand(2, 16) < 0.4
    expected = model(pixels, bool_masked_pos=masked).last_hidden_state[:, 1:]
    torch.testing.assert_close(from_transformers(model)(pixels, masked=masked).patches, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"registers": 2, "mlp": "swiglu"},
        {"class_token": False, "layer_scale": 0.0, "pos_embed": "sincos"},
        {"layer_scale": 0.0},
        {"pre_norm": True, "patch_bias": False, "mlp": "quick_gelu", "layer_scale": 0.0, "norm_eps": 1e-5},
    ],
)
@torch.inference_mode()
def test_an_exported_model_is_read_by_transformers_and_by_name(changes: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = VisionTransformer(ViTConfig(img_size=32, patch_size=8, width=24, depth=2, heads=2, **changes)).eval()
    ours.save(str(tmp_path / "ours"))
    name = export(str(tmp_path / "ours"), str(tmp_path / "theirs")).split(".")[1]
    pixels = torch.randn(2, 3, 32, 32)
    read = getattr(transformers, name).from_pretrained(tmp_path / "theirs").eval()
    torch.testing.assert_close(their_tokens(read, pixels), our_tokens(ours, pixels), atol=1e-5, rtol=1e-5)
    again = load_model(f"hf:{tmp_path / 'theirs'}")
    torch.testing.assert_close(our_tokens(again, pixels), our_tokens(ours, pixels), atol=1e-5, rtol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    assert list(processor.image_mean) == pytest.approx(list(ours.config.mean))


def test_what_cannot_be_carried_is_one_sentence(tmp_path: Path) -> None:
    rotary = VisionTransformer(ViTConfig(img_size=32, patch_size=8, width=24, depth=1, heads=2, pos_embed="rotary"))
    with pytest.raises(UserError, match="no model with these parts"):
        to_transformers(rotary)
    bert = transformers.BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(UserError, match="a bert model"):
        from_transformers(transformers.BertModel(bert))
    with pytest.raises(UserError, match=r"hf:.*nothing cannot be loaded"):
        load_model(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="neither a training directory"):
        load_model(str(tmp_path))


def test_a_damaged_model_is_one_sentence(tmp_path: Path) -> None:
    VisionTransformer(ViTConfig(img_size=32, patch_size=8, width=24, depth=1, heads=2)).save(str(tmp_path))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="holds no model that granary can read"):
        load_model(str(tmp_path))
