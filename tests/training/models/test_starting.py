"""Weights of one Vision Transformer for another: what is carried gives the same tokens, what is not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from granary.training.models.export import export
from granary.training.models.positions import interpolated, sincos_positions
from granary.training.models.registry import load_model
from granary.training.models.starting import Misfit, start
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig

SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2, "layer_scale": 0.0}


def model(**changes: Any) -> VisionTransformer:
    """Return a model whose weights are all random, none at 0 or 1."""
    built = VisionTransformer(ViTConfig(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built


@pytest.mark.parametrize("source", [{}, {"layer_scale": 1e-5}, {"patch_bias": False}])
@pytest.mark.parametrize("target", [{}, {"layer_scale": 1e-5}, {"mask_token": True}, {"drop_path": 0.1}])
@pytest.mark.parametrize("mask_token", [False, True])
@torch.inference_mode()
def test_parts_that_do_not_matter_do_not_hinder(
    source: dict[str, Any], target: dict[str, Any], mask_token: bool
) -> None:
    """DINOv2 has a mask token and LayerScale, supervised training has neither: the tokens are the same."""
    torch.manual_seed(0)
    ours, theirs, pixels = model(**target), model(**source, mask_token=mask_token), torch.randn(2, 3, 32, 32)
    remarks = start(ours, theirs)
    torch.testing.assert_close(ours(pixels).cls, theirs(pixels).cls, atol=1e-5, rtol=1e-4)
    left, new = mask_token and not target.get("mask_token"), target.get("mask_token") and not mask_token
    expected = ["left out: mask_token"] if left else []
    assert remarks == expected + (["with initial weights: mask_token"] if new else [])


@pytest.mark.parametrize("side", [16, 48])
@torch.inference_mode()
def test_positions_are_interpolated_to_another_size(side: int) -> None:
    ours, theirs = model(img_size=side), model()
    remarks = start(ours, theirs)
    grid = side // 8
    assert torch.equal(ours.positions, interpolated(theirs.positions, 4, grid, grid, antialias=True))
    assert remarks == [f"positions of 4 x 4 patches are now of {grid} x {grid}"]
    pixels = torch.randn(2, 3, side, side)  # the other model interpolates when it sees them
    torch.testing.assert_close(ours(pixels).cls, theirs(pixels).cls, atol=1e-5, rtol=1e-4)


def test_fixed_positions_of_another_size_are_the_table_of_that_size() -> None:
    ours = VisionTransformer(ViTConfig(**{**SIZES, "img_size": 48, "pos_embed": "sincos"}))
    start(ours, VisionTransformer(ViTConfig(**{**SIZES, "pos_embed": "sincos"})))
    assert torch.equal(ours.positions[0], sincos_positions(6, 6, 24))


@pytest.mark.parametrize(
    ("source", "target", "remarks"),
    [
        ({"registers": 3}, {}, ["left out: registers"]),
        ({}, {"registers": 3}, ["with initial weights: registers"]),
        ({}, {"class_token": False}, ["left out: cls"]),
        ({"class_token": False}, {}, ["with initial weights: cls"]),
        ({"depth": 4}, {}, ["left out: blocks.2, blocks.3"]),
        ({"pre_norm": True}, {}, ["left out: pre_norm"]),
        ({}, {"pos_embed": "rotary"}, ["left out: positions"]),
        ({"mlp": "quick_gelu"}, {}, ["mlp was quick_gelu and is gelu"]),
        ({"patch_bias": True}, {"patch_bias": False}, ["left out: embed"]),
    ],
)
def test_what_is_left_out_or_new_is_named(source: dict[str, Any], target: dict[str, Any], remarks: list[str]) -> None:
    assert start(model(**target), model(**source)) == remarks


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"depth": 1}, r"blocks\.1\.norm1\.weight is not there, \(24,\) is needed"),
        ({"width": 32}, "its width is 32, not 24"),
        ({"heads": 6}, "its heads is 6, not 2"),
        ({"patch_size": 4}, "its patch_size is 4, not 8"),
        ({"mlp_ratio": 2.0}, r"blocks\.0\.mlp\.up\.weight is \(48, 24\), \(96, 24\) is needed"),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(source: dict[str, Any], reason: str) -> None:
    ours = model()
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    with pytest.raises(Misfit, match=reason):
        start(ours, model(**source))
    assert all(torch.equal(weight, before[name]) for name, weight in ours.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"mask_token": True, "layer_scale": 1e-5}, {"registers": 2}])
@pytest.mark.parametrize("prefix", ["hf:", ""])
@torch.inference_mode()
def test_an_export_is_a_start_for_the_model_that_it_is_of(changes: dict[str, Any], prefix: str, tmp_path: Path) -> None:
    theirs, ours, pixels = model(**changes), model(**changes), torch.randn(2, 3, 32, 32)
    theirs.save(str(tmp_path / "trained"))
    export(str(tmp_path / "trained"), str(tmp_path / "export"))
    start(ours, load_model(prefix + str(tmp_path / "export")))
    torch.testing.assert_close(ours(pixels).cls, theirs(pixels).cls, atol=1e-5, rtol=1e-4)
