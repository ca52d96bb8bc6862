"""Facts about the Vision Transformer: known sizes, an independent implementation, a round trip through a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from training.vit import SwiGLU, VisionTransformer, ViTConfig, sincos_positions

SMALL = ViTConfig(side=32, patch=8, width=24, depth=3, heads=2, registers=2, layer_scale=0.5)


def model(**changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(**{**SMALL.__dict__, **changes})).eval()  # type: ignore[arg-type]


def test_tokens_have_their_shapes() -> None:
    tokens = model()(torch.randn(5, 3, 32, 32))
    assert [part.shape for part in tokens] == [(5, 24), (5, 2, 24), (5, 16, 24)]


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.5), ("small", 21.7), ("base", 85.8), ("large", 303.3)])
def test_named_sizes_have_the_published_number_of_weights(size: str, millions: float) -> None:
    """Touvron et al. 2021, table 1 (5.7M, 22M, 86M) and Dosovitskiy et al. 2020 (307M), less the classifier."""
    with torch.device("meta"):
        vit = VisionTransformer(ViTConfig.named(size, layer_scale=0.0))
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_equal_to_the_implementation_of_transformers() -> None:
    """Carry weights over to transformers' ViT and compare all tokens."""
    ours = model(registers=0, layer_scale=0.0)
    settings = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    config = transformers.ViTConfig(**settings, image_size=32, patch_size=8, layer_norm_eps=1e-6)
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    state = theirs.state_dict()
    carried = {key: value.clone() for key, value in state.items()}
    source = ours.state_dict()
    with torch.no_grad():
        for key in carried:
            carried[key] = _ours_for(key, source)
    theirs.load_state_dict(carried)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = ours(pixels)
        reference = theirs(pixels).last_hidden_state
    torch.testing.assert_close(torch.cat([tokens.cls[:, None], tokens.patches], dim=1), reference, atol=1e-5, rtol=1e-5)


def _ours_for(key: str, source: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return our weight for a key of transformers' ViT."""
    if key == "embeddings.cls_token":
        return source["cls"]
    if key == "embeddings.position_embeddings":  # theirs has one for the class token too
        return torch.cat([torch.zeros(1, 1, 24), source["positions"]], dim=1)
    kind = key.rsplit(".", 1)[1]
    if "patch_embeddings" in key:
        return source[f"embed.{kind}"]
    if key.startswith("layernorm."):
        return source[f"norm.{kind}"]
    number = next(part for part in key.split(".") if part.isdigit())
    block = f"blocks.{number}"
    for place, names in enumerate([("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")]):
        if any(f".{name}." in key for name in names):
            return source[f"{block}.attention.qkv.{kind}"].chunk(3)[place]
    renamed = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.up",
        "mlp.fc1": "mlp.up",
        "attention.output.dense": "attention.out",
        "o_proj": "attention.out",
        "output.dense": "mlp.down",
        "mlp.fc2": "mlp.down",
    }
    return source[f"{block}.{next(new for old, new in renamed.items() if f'.{old}.' in key)}.{kind}"]


def test_a_zero_layer_scale_makes_blocks_the_identity() -> None:
    vit = model()
    for block in vit.blocks:
        torch.nn.init.zeros_(block.scale1.scale)
        torch.nn.init.zeros_(block.scale2.scale)
    pixels = torch.randn(1, 3, 32, 32)
    expected = vit.norm(vit.tokens(pixels))
    torch.testing.assert_close(vit(pixels).patches, expected[:, 3:])


def test_intermediate_layers_end_with_the_output() -> None:
    vit, pixels = model(), torch.randn(2, 3, 32, 32)
    first, last = vit.intermediate(pixels, [0, 2])
    torch.testing.assert_close(last.cls, vit(pixels).cls)
    assert not torch.allclose(first.cls, last.cls)


def test_without_positions_patches_are_a_set() -> None:
    """Permuting patches permutes their tokens and leaves the class token when positions are 0."""
    vit = model()
    with torch.no_grad():
        vit.positions.zero_()
    pixels = torch.randn(1, 3, 32, 32)
    rolled = torch.roll(pixels, 8, dims=3)
    a, b = vit(pixels), vit(rolled)
    torch.testing.assert_close(a.cls, b.cls, atol=1e-5, rtol=1e-5)
    grid = a.patches.unflatten(1, (4, 4))
    torch.testing.assert_close(torch.roll(grid, 1, dims=2).flatten(1, 2), b.patches, atol=1e-5, rtol=1e-5)


def test_other_picture_sizes_interpolate_positions() -> None:
    vit = model()
    assert vit(torch.randn(1, 3, 48, 24)).patches.shape == (1, 18, 24)
    torch.testing.assert_close(vit._positions(4, 4), vit.positions)


def test_sincos_positions_have_constant_norm_and_tell_places_apart() -> None:
    positions = sincos_positions(5, 7, 32)
    torch.testing.assert_close(positions.square().sum(dim=1), torch.full((35,), 16.0))
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1
    assert not model(positions="sincos").positions.requires_grad


def test_swiglu_has_the_weights_of_the_mlp_it_replaces() -> None:
    gated = sum(p.numel() for p in SwiGLU(384, 1536).parameters())
    assert gated == pytest.approx(2 * 384 * 1536, rel=0.01)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_saved_and_loaded_is_the_same_model(mlp: str, tmp_path: Path) -> None:
    vit, pixels = model(mlp=mlp, positions="sincos", mean=(0.1, 0.2, 0.3)), torch.randn(1, 3, 32, 32)
    vit.save(str(tmp_path))
    loaded = VisionTransformer.load(str(tmp_path)).eval()
    assert loaded.config == vit.config
    assert torch.equal(loaded(pixels).cls, vit(pixels).cls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("changes", [{"side": 30}, {"heads": 5}, {"width": 26}, {"mlp": "relu"}, {"positions": "rope"}])
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown"):
        model(**changes)
