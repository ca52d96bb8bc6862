"""A ResNet from and to `transformers`: equal outputs both ways, through files too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from granary.curation.errors import UserError
from granary.training.models.export import export
from granary.training.models.preparation import Preparation
from granary.training.models.registry import load_model
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.resnet_weights import from_transformers, to_transformers

SIZES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [2, 1, 2]}


def theirs(kind: Any = transformers.ResNetModel, **changes: Any) -> Any:
    """A model of transformers with random weights, norms and running statistics among them."""
    torch.manual_seed(1)
    built = kind(transformers.ResNetConfig(**{**SIZES, **changes}))
    with torch.no_grad():
        for name, tensor in built.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor) if "var" in name else 0.1 * torch.randn_like(tensor))
    return built.eval()


def assert_equal(ours: ResNet, model: Any) -> None:
    """In float64: the kernels of the two sum in another order."""
    pixels = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    tokens, output = ours.double()(pixels), model.double()(pixels)
    torch.testing.assert_close(tokens.cls, output.pooler_output.flatten(1), atol=1e-9, rtol=1e-9)
    rows = output.last_hidden_state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens.patches, rows, atol=1e-9, rtol=1e-9)
    pixels = pixels.float()
    expected = model.float()(pixels).pooler_output.flatten(1)
    assert float((ours.float()(pixels).cls - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@torch.inference_mode()
def test_outputs_equal_those_of_transformers(layer_type: str) -> None:
    model = theirs(layer_type=layer_type)
    ours = from_transformers(model, Preparation())
    assert_equal(ours, model)
    assert_equal(ours, to_transformers(ours))


@torch.inference_mode()
def test_a_classifier_of_the_hub_is_read_by_name(tmp_path: Path) -> None:
    model = theirs(transformers.ResNetForImageClassification)
    model.save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 48}, "crop_pct": 0.875, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(size))
    for name in (f"hf:{tmp_path}", str(tmp_path)):
        ours = load_model(name)
        assert isinstance(ours, ResNet)
        assert_equal(ours, model.resnet)
        assert (ours.config.img_size, ours.config.mean, ours.config.std) == (48, (0.5,) * 3, (0.25,) * 3)


@torch.inference_mode()
def test_an_exported_resnet_is_read_by_transformers_and_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = ResNet(ResNetConfig(img_size=64, widths=(8, 16), depths=(1, 2), std=(0.2, 0.3, 0.4)))
    ours(torch.randn(4, 3, 64, 64))
    ours.eval().save(str(tmp_path / "ours"))
    assert "transformers.ResNetModel.from_pretrained" in export(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    assert_equal(ours, transformers.ResNetModel.from_pretrained(tmp_path / "theirs").eval())
    again = load_model(f"hf:{tmp_path / 'theirs'}")
    assert again.config == ResNetConfig(**{**ours.config.__dict__, "stem_width": 8})
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    assert list(processor.image_std) == [0.2, 0.3, 0.4]


@pytest.mark.parametrize("changes", [{"stem": "small"}, {"last_width": 48}])
def test_parts_that_transformers_has_not_are_one_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="transformers has no ResNet with these parts"):
        to_transformers(ResNet(ResNetConfig(widths=(8, 16), depths=(1, 1), **changes)))


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "gelu"}, {"downsample_in_first_stage": True}, {"downsample_in_bottleneck": True}]
)
def test_parts_that_ours_has_not_are_one_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is not supported"):
        from_transformers(theirs(**changes), Preparation())
