"""Facts about the convolutional stem: what it computes, how far a token sees, that `keep` and `masked` still hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from granary.curation.errors import UserError
from granary.training.methods.ijepa import IJEPA, IJEPAOptions
from granary.training.models.backbone_config import read_config
from granary.training.models.convolutions import conv_stem
from granary.training.models.image_classifier import to_image_classifier
from granary.training.models.starting import Misfit, start
from granary.training.models.vit import VisionTransformer, gather_tokens
from granary.training.models.vit_config import ViTConfig
from granary.training.models.weights import to_transformers

SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 4, "width": 24, "depth": 2, "heads": 2, "layer_scale": 0.0}


def model(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(**{**SIZES, "stem": "conv", **changes}))


@pytest.mark.parametrize(("patch", "channels"), [(2, [24]), (4, [12, 24]), (8, [6, 12, 24]), (16, [3, 6, 12, 24])])
def test_channels_double_up_to_the_width(patch: int, channels: list[int]) -> None:
    stem = conv_stem(24, patch, bias=True)
    assert [part[0].out_channels for part in stem[:-1]] == channels
    assert stem(torch.randn(2, 3, 48, 32)).shape == (2, 24, 48 // patch, 32 // patch)


def test_the_stem_is_that_of_the_paper() -> None:
    stem, x = conv_stem(24, 4, bias=True).eval(), torch.randn(2, 3, 16, 16)
    state = stem.state_dict()
    expected = x
    for number in range(2):
        expected = F.conv2d(expected, state[f"{number}.0.weight"], stride=2, padding=1)
        expected = (expected / (1 + 1e-5) ** 0.5).relu()  # running statistics 0 and 1, gain 1, no bias
    expected = torch.einsum("oc,bchw->bohw", state["2.weight"][:, :, 0, 0], expected)
    torch.testing.assert_close(stem(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [4, 8])
def test_a_token_sees_its_patch_and_all_but_a_row_of_those_before_it(patch: int) -> None:
    stem, x = conv_stem(8, patch, bias=True).eval(), torch.randn(1, 3, 4 * patch, 4 * patch, requires_grad=True)
    nn.init.ones_(stem[-1].weight)
    stem(x)[0, :, 2, 2].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(dim=(0, 1)).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (2 * patch - (patch - 1), 3 * patch - 1)


@torch.inference_mode()
def test_kept_tokens_are_those_of_the_whole_picture() -> None:
    vit, pixels = model().eval(), torch.randn(2, 3, 16, 16)
    keep = torch.tensor([[0, 5, 9], [3, 2, 15]])
    whole, some = vit.tokens(pixels), vit.tokens(pixels, keep)
    torch.testing.assert_close(some[:, 1:], gather_tokens(whole[:, 1:], keep))
    assert vit(pixels, keep=keep).patches.shape == (2, 3, 24)


@torch.inference_mode()
def test_masked_tokens_are_the_mask_token_and_a_position() -> None:
    vit, pixels = model(mask_token=True).eval(), torch.randn(1, 3, 16, 16)
    vit.mask_token.fill_(3.0)
    masked = torch.arange(16)[None] % 3 == 0
    tokens = vit.tokens(pixels, masked=masked)[:, 1:]
    torch.testing.assert_close((tokens - vit.positions)[masked], torch.full((6, 24), 3.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens[~masked], vit.tokens(pixels)[:, 1:][~masked])


def test_the_stem_is_trained_from_the_initial_weights_of_he() -> None:
    vit = model(width=64, heads=4)
    first, last = vit.state_dict()["embed.0.0.weight"], vit.state_dict()["embed.2.weight"]
    assert float(first.std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.06)
    assert float(last.std()) == pytest.approx(0.02, rel=0.05)
    vit(torch.randn(4, 3, 16, 16)).cls.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vit.embed.parameters())


def test_saved_and_loaded_and_never_more_than_its_weights(tmp_path: Path) -> None:
    vit, pixels = model(), torch.randn(2, 3, 16, 16)
    vit(pixels)
    vit.save(str(tmp_path))
    assert torch.equal(VisionTransformer.load(str(tmp_path)).eval()(pixels).cls, vit.eval()(pixels).cls)
    config = tmp_path / "config.json"
    written = json.loads(config.read_text())
    for lie in ({"width": 10**9}, {"patch_size": 8}, {"stem": "patch"}, {"stem": "tree"}):
        config.write_text(json.dumps({**written, **lie}))
        with pytest.raises((ValueError, KeyError)):
            VisionTransformer.load(str(tmp_path))
    del written["stem"], written["kind"]
    config.write_text(json.dumps(written))
    assert read_config(str(tmp_path)) == ViTConfig(**SIZES)


def test_where_it_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"patch_size is 6; stem conv needs it to be a power of 2"):
        ViTConfig(img_size=12, patch_size=6, stem="conv")
    with pytest.raises(UserError, match=r"model\.stem: conv is not right: its tokens would have seen the patches"):
        IJEPA(ViTConfig(**{**SIZES, **IJEPA.MODEL, "stem": "conv"}), IJEPAOptions())
    with pytest.raises(UserError, match="with a patch stem"):
        to_transformers(model())
    with pytest.raises(UserError, match="transformers has no model with these parts"):
        to_image_classifier(model(), nn.Linear(24, 2), ["a", "b"])
    with pytest.raises(Misfit, match="its stem is patch, not conv"):
        start(model(), model(stem="patch"))
