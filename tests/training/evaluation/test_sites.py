"""The six sites of a block and its attention, against the same computed step by step from the weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.evaluation.sites import Site, attention_maps, sites, sites_of, tokens_at
from granary.training.evaluation.subjects import Pixels
from granary.training.models.positions import rotary_angles
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.vit import Block, VisionTransformer
from granary.training.models.vit_config import ViTConfig

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 16, "depth": 3, "heads": 2}
KINDS: list[dict[str, Any]] = [
    {"layer_scale": 0.0},
    {"layer_scale": 0.5, "registers": 2, "mlp": "swiglu", "drop_path": 0.5},
    {"pos_embed": "rotary", "class_token": False},
]


def model(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    built = VisionTransformer(ViTConfig(**{**SMALL, **changes}))
    for parameter in built.parameters():  # as after training: no bias is 0, no norm the identity
        torch.nn.init.normal_(parameter, std=0.3) if parameter.numel() else None
    return built


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the two halves of each head's channels as coordinates: (T, d)."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    cos, sin = angles[..., :half].cos(), angles[..., :half].sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


def attention_by_hand(block: Block, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return probabilities (H, T, T) and the output (T, D) for the tokens (T, D) of one picture, head by head."""
    width, size = x.shape[1], x.shape[1] // 2
    weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
    probabilities, outputs = [], []
    for head in range(2):
        q, k, v = (
            x @ weight[part * width + head * size : part * width + (head + 1) * size].T
            + bias[part * width + head * size : part * width + (head + 1) * size]
            for part in range(3)
        )
        if angles is not None:
            q, k = turned(q, angles), turned(k, angles)
        scores = torch.exp(q @ k.T / math.sqrt(size))
        probabilities.append(scores / scores.sum(dim=1, keepdim=True))
        outputs.append(probabilities[-1] @ v)
    return torch.stack(probabilities), block.attention.out(torch.cat(outputs, dim=1))


@pytest.mark.parametrize("changes", KINDS)
def test_sites_and_attention_equal_those_computed_step_by_step(changes: dict[str, Any]) -> None:
    vit, pixels = model(**changes), torch.randn(2, 3, 16, 16)
    seen, maps = sites(vit, pixels, [0, 2]), attention_maps(vit, pixels, [0, 2])
    angles = rotary_angles(4, 4, 4, 8) if changes.get("pos_embed") == "rotary" else None
    vit.eval()
    for picture in range(2):
        x = vit.tokens(pixels)[picture]
        for layer, block in enumerate(vit.blocks):
            norm1 = F.layer_norm(x, (16,), block.norm1.weight, block.norm1.bias, 1e-6)
            probabilities, attention = attention_by_hand(block, norm1, angles)
            scales = [getattr(getattr(block, name), "scale", torch.ones(16)) for name in ("scale1", "scale2")]
            res1 = x + scales[0] * attention
            norm2 = F.layer_norm(res1, (16,), block.norm2.weight, block.norm2.bias, 1e-6)
            mlp = scales[1] * block.mlp(norm2)
            x = res1 + mlp
            if layer in (0, 2):
                expected = [norm1, scales[0] * attention, res1, norm2, mlp, x]
                values = seen[layer // 2]
                assert list(values) == ["norm1", "attention", "res1", "norm2", "mlp", "block"]
                for (name, value), right in zip(values.items(), expected, strict=True):
                    torch.testing.assert_close(value[picture], right, atol=1e-4, rtol=1e-4, msg=f"{name} {layer}")
                torch.testing.assert_close(maps[layer // 2][picture], probabilities, atol=1e-5, rtol=1e-4)


def test_a_model_in_training_is_looked_at_in_evaluation_and_left_as_it_was() -> None:
    vit, pixels = model(drop_path=0.5).train(), torch.randn(4, 3, 16, 16)
    one, two = (sites(vit, pixels, [1])[0] for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)  # no branch was dropped
    assert vit.training
    assert not any(module._forward_hooks for module in vit.modules())
    assert not one["block"].requires_grad
    torch.testing.assert_close(one["res1"] + one["mlp"], one["block"])


def test_a_failing_model_keeps_no_hooks() -> None:
    vit = model()
    with pytest.raises(RuntimeError):
        sites(vit, torch.randn(1, 5, 16, 16), [0])
    assert not any(module._forward_hooks for module in vit.modules())


def test_tokens_at_the_sites_of_a_vision_transformer_are_those_of_its_own_functions() -> None:
    vit, pixels = model(registers=2), torch.randn(2, 3, 16, 16)
    names = [str(site) for site in sites_of(vit)]
    assert names[:3] == ["0.embed", "1.norm1", "1.attention"]
    assert names[-2:] == ["3.block", "4.norm"]
    assert len(names) == 6 * 3 + 2
    seen = dict(zip(names, tokens_at(vit, pixels, sites_of(vit)), strict=True))
    vit.eval()
    torch.testing.assert_close(seen["0.embed"], vit.split(vit.tokens(pixels)))
    torch.testing.assert_close(seen["4.norm"], vit(pixels))
    torch.testing.assert_close(seen["2.block"].patches, sites(vit, pixels, [1])[0]["block"][:, 3:])
    added = seen["1.block"].patches + seen["2.attention"].patches  # trap: before or after the residual
    torch.testing.assert_close(added, seen["2.res1"].patches)
    assert torch.equal(seen["2.mlp"].cls, tokens_at(vit, pixels, [Site(2, "mlp")])[0].cls)


def test_tokens_at_the_stages_of_a_resnet_are_its_maps() -> None:
    torch.manual_seed(0)
    resnet = ResNet(ResNetConfig(img_size=16, widths=(8, 16), depths=(1, 1), stem="small")).eval()
    pixels = torch.randn(2, 3, 16, 16)
    assert [str(site) for site in sites_of(resnet)] == ["0.stem", "1.stage", "2.stage"]
    stem, *stages = tokens_at(resnet, pixels, sites_of(resnet))
    torch.testing.assert_close(stem.patches, resnet.stem(pixels).flatten(2).transpose(1, 2))
    for seen, expected in zip(stages, resnet.intermediate(pixels, [0, 1]), strict=True):
        torch.testing.assert_close(seen, expected)  # nothing was changed in its place afterwards
    assert stages[1].patches.shape == (2, 64, 16)
    assert torch.equal(tokens_at(resnet, pixels, [Site(1, "stage")])[0].patches, stages[0].patches)


def test_a_model_without_blocks_has_one_site() -> None:
    pixels = torch.rand(2, 3, 32, 32)
    assert [str(site) for site in sites_of(Pixels())] == ["0.pixels"]
    assert tokens_at(Pixels(), pixels, [Site(0, "pixels")])[0].patches.shape == (2, 16, 192)
