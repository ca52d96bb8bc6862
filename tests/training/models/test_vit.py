"""Facts about the Vision Transformer: known sizes, an independent implementation, a round trip through a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from granary.training.models.positions import interpolated, rotate, sincos_positions
from granary.training.models.vit import FEW, Block, SwiGLU, VisionTransformer, attend, gather_tokens
from granary.training.models.vit_config import FORMER, ViTConfig

SMALL = ViTConfig(img_size=32, patch_size=8, width=24, depth=3, heads=2, registers=2, layer_scale=0.5)


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
    assert interpolated(vit.positions, 4, 4, 4, True) is vit.positions  # index 0 is no class token


def test_sincos_positions_have_constant_norm_and_tell_places_apart() -> None:
    positions = sincos_positions(5, 7, 32)
    torch.testing.assert_close(positions.square().sum(dim=1), torch.full((35,), 16.0))
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1
    assert not model(pos_embed="sincos").positions.requires_grad


def test_swiglu_has_the_weights_of_the_mlp_it_replaces() -> None:
    gated = sum(p.numel() for p in SwiGLU(384, 1536).parameters())
    assert gated == pytest.approx(2 * 384 * 1536, rel=0.01)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu", "quick_gelu"])
def test_saved_and_loaded_is_the_same_model(mlp: str, tmp_path: Path) -> None:
    vit, pixels = model(mlp=mlp, pos_embed="sincos", mean=(0.1, 0.2, 0.3)), torch.randn(1, 3, 32, 32)
    vit.save(str(tmp_path))
    loaded = VisionTransformer.load(str(tmp_path)).eval()
    assert loaded.config == vit.config
    assert torch.equal(loaded(pixels).cls, vit(pixels).cls)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_sincos_positions_equal_the_formula() -> None:
    """The first half of the channels is the column's; per axis sines, then cosines."""
    table, h = sincos_positions(3, 5, 16).numpy(), 4
    for number in range(15):
        row, column = divmod(number, 5)
        for half, index in enumerate((column, row)):
            for k in range(h):
                angle = index * 10000 ** (-k / h)
                assert table[number, 8 * half + k] == pytest.approx(np.sin(angle), abs=1e-6)
                assert table[number, 8 * half + h + k] == pytest.approx(np.cos(angle), abs=1e-6)


KINDS: list[dict[str, object]] = [{"pos_embed": kind} for kind in ("learned", "sincos", "rotary")]
KINDS.append({"class_token": False, "registers": 0})


@pytest.mark.parametrize("changes", KINDS)
@torch.inference_mode()
def test_keeping_all_patches_is_no_dropping_and_order_only_permutes(changes: dict[str, object]) -> None:
    vit, pixels = model(width=32, **changes), torch.randn(2, 3, 32, 32)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    whole, kept = vit(pixels), vit(pixels, keep=order)
    torch.testing.assert_close(kept.patches, gather_tokens(whole.patches, order), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept.cls, whole.cls, atol=1e-5, rtol=1e-5)
    some = vit(pixels, keep=order[:, :5])
    assert some.patches.shape == (2, 5, 32)
    hidden = pixels.clone()
    for picture, number in enumerate(order[:, 7]):  # a dropped patch does not matter
        row, column = divmod(int(number), 4)
        hidden[picture, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 9
    assert torch.equal(vit(hidden, keep=order[:, :5]).patches, some.patches)


@torch.inference_mode()
def test_without_a_class_token_cls_is_the_mean_of_the_patches() -> None:
    tokens = model(class_token=False)(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(tokens.cls, tokens.patches.mean(dim=1))
    assert tokens.registers.shape == (2, 2, 24)


@torch.inference_mode()
def test_masked_patches_are_the_mask_token_in_their_place() -> None:
    vit, pixels = model(mask_token=True), torch.randn(2, 3, 32, 32)
    torch.nn.init.normal_(vit.mask_token)
    masked = torch.rand(2, 16) < 0.5
    hidden = pixels.unfold(2, 8, 8).unfold(3, 8, 8).clone()  # (2, 3, 4, 4, 8, 8)
    hidden[masked.unflatten(1, (4, 4))[:, None].expand(-1, 3, -1, -1)] = 5.0
    other = hidden.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 32, 32)
    assert torch.equal(vit(pixels, masked=masked).patches, vit(other, masked=masked).patches)
    assert torch.equal(vit(pixels, masked=torch.zeros_like(masked)).patches, vit(pixels).patches)
    assert not torch.allclose(vit(pixels, masked=masked).patches, vit(pixels).patches)


@torch.inference_mode()
def test_rotary_positions_are_relative() -> None:
    """A picture of one repeated patch column rolls with its tokens only if positions are differences: scores depend on
    distances alone."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16)
    frequencies = 100.0 ** (-torch.arange(4) / 4)

    def score(left: tuple[int, int], right: tuple[int, int]) -> float:
        turned = []
        for vector, (row, column) in ((q, left), (k, right)):
            angles = torch.cat([row * frequencies, column * frequencies]).repeat(2)
            turned.append(rotate(vector, angles.view(1, 1, 1, 16)))
        return float((turned[0] * turned[1]).sum())

    assert score((1, 2), (3, 5)) == pytest.approx(score((4, 0), (6, 3)), abs=1e-4)
    assert score((1, 2), (3, 5)) != pytest.approx(score((1, 2), (5, 3)), abs=1e-2)
    vit = model(width=32, pos_embed="rotary", registers=0, class_token=False)
    assert not hasattr(vit, "positions")
    angles = vit._angles(torch.zeros(1, 3, 32, 32), None)
    assert angles is not None
    difference = (angles[0, 0, 5] - angles[0, 0, 0], angles[0, 0, 15] - angles[0, 0, 10])  # one down, one right
    torch.testing.assert_close(*difference)


def test_stochastic_depth_keeps_the_expectation_and_rests_in_evaluation() -> None:
    block, x = Block(ViTConfig(width=8, heads=2, drop_path=0.25, layer_scale=0)), torch.randn(8, 3, 8)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3)
        expected = x + block.attention(block.norm1(x))
        block.train().mlp.requires_grad_(False)
        torch.nn.init.zeros_(block.mlp.down.weight)
        torch.nn.init.zeros_(block.mlp.down.bias)
        torch.manual_seed(0)
        found = torch.stack([block(x) for _ in range(800)])
        skipped = (found == x).flatten(2).all(dim=2)
        assert (skipped.sum(dim=1) == 2).all()  # a quarter of 8, in every pass
        torch.testing.assert_close(found.mean(dim=0), expected, atol=0.1, rtol=0.1)
        assert torch.equal(block.eval()(x), expected)


@torch.inference_mode()
def test_a_block_may_give_the_last_tokens_alone() -> None:
    block, x = model(width=32, pos_embed="rotary").blocks[0], torch.randn(3, 7, 32)
    angles = torch.randn(3, 1, 7, 16)
    torch.testing.assert_close(block(x, angles, first=4), block(x, angles)[:, 4:], atol=1e-6, rtol=1e-6)


def test_recomputing_blocks_gives_the_same_gradients() -> None:
    plain, again = model(drop_path=0.5).train(), model(drop_path=0.5).train()
    again.recompute = True
    pixels = torch.randn(4, 3, 32, 32)
    for vit in (plain, again):
        torch.manual_seed(3)
        vit(pixels).cls.square().sum().backward()
    for one, two in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_a_model_saved_before_there_were_more_parts_is_read(tmp_path: Path) -> None:
    vit = model()
    vit.save(str(tmp_path))
    fields = json.loads((tmp_path / "config.json").read_text())
    former = ("side", "patch", "width", "depth", "heads", "hidden", "registers", "positions", "mlp", "layer_scale")
    config = {name: fields[FORMER.get(name, name)] for name in former}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(VisionTransformer.load(str(tmp_path)).eval()(pixels).cls, vit(pixels).cls)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "model_type": "vit"}))
    with pytest.raises(ValueError, match="model_type"):
        VisionTransformer.load(str(tmp_path))


WRONG = [{"img_size": 30}, {"heads": 5}, {"width": 26}, {"mlp": "relu"}, {"pos_embed": "rope"}, {"drop_path": 1.0}]


@pytest.mark.parametrize("changes", WRONG)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|unknown"):
        model(**changes)


@pytest.mark.parametrize("tokens", [1, 17, FEW, FEW + 1])
def test_attention_is_the_same_with_and_without_the_fused_kernel(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, tokens, tokens))
    upstream, found = torch.randn(2, 3, 5, 8), []
    for few in (0, 10_000):
        monkeypatch.setattr("granary.training.models.vit.FEW", few)
        out = attend(q, k, v)
        found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)])
    for fused, written in zip(*found, strict=True):
        torch.testing.assert_close(fused, written)
