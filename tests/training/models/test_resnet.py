"""Facts about the ResNet: sizes and values of the literature, and the invariants of a last block of another width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.models.build import build, load_backbone
from granary.training.models.registry import load_model
from granary.training.models.resnet import ResNet
from granary.training.models.resnet_config import ResNetConfig

SMALL = ResNetConfig(img_size=24, widths=(8, 16, 32), depths=(1, 1, 2), stem="small")


def model(config: ResNetConfig = SMALL, seed: int = 0, **changes: Any) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(ResNetConfig(**{**config.__dict__, **changes}))


def bottleneck(**changes: Any) -> ResNet:
    return model(widths=(16, 32, 64), block="bottleneck", **changes)


def count(resnet: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in resnet.parameters())


@pytest.mark.parametrize(
    ("size", "parameters"),  # of torchvision's models without the classifier
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032)],
)
def test_named_sizes_have_the_weights_of_the_literature(size: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(ResNet(ResNetConfig.named(size))) == parameters
        assert count(ResNet(ResNetConfig.named(size, last_width=ResNetConfig.named(size).widths[-1]))) == parameters


def test_weights_are_linear_in_the_last_width() -> None:
    with torch.device("meta"):
        whole = count(ResNet(ResNetConfig.named("resnet50")))
        for width in (512, 4096, 32_768):
            wide = count(ResNet(ResNetConfig.named("resnet50", last_width=width)))
            last, shortcut = 512 * width + 2 * width, 2048 * width + 2 * width
            assert wide == whole - (512 * 2048 + 2 * 2048) + last + shortcut


def reference(resnet: ResNet, pixels: Tensor) -> Tensor:
    """The equations of the paper for basic blocks in evaluation mode, written out over the weights by name."""
    state = resnet.state_dict()

    def conv_norm(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.0.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, variance = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return x * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]

    x = conv_norm(pixels, "stem.0", 2 if resnet.config.stem == "half" else 1).clamp(min=0)
    for stage, depth in enumerate(resnet.config.depths):
        for number in range(depth):
            name, stride = f"layers.{stage}.{number}", 2 if stage and not number else 1
            branch = conv_norm(conv_norm(x, f"{name}.branch.0", stride).clamp(min=0), f"{name}.branch.1")
            straight = conv_norm(x, f"{name}.shortcut", stride) if f"{name}.shortcut.0.weight" in state else x
            x = (branch + straight).clamp(min=0)
    return x


@pytest.mark.parametrize("stem", ["small", "half"])
@pytest.mark.parametrize("last_width", [None, 48])
def test_the_output_is_that_of_the_equations(last_width: int | None, stem: str) -> None:
    resnet, pixels = model(last_width=last_width, stem=stem), torch.randn(4, 3, 24, 24)
    resnet(pixels * 2 + 1)  # moves the running statistics
    resnet.eval()
    tokens, x = resnet(pixels), reference(resnet, pixels)
    torch.testing.assert_close(tokens.patches, x.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.cls, x.mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)
    assert tokens.registers.shape == (4, 0, resnet.config.width)
    assert tokens.patches.shape == (4, resnet.config.grid**2, resnet.config.width)


def test_outputs_after_stages_have_their_widths_and_grids() -> None:
    resnet, pixels = model().eval(), torch.randn(2, 3, 20, 28)
    first, last = resnet.intermediate(pixels, [0, 2])
    assert (first.patches.shape, last.patches.shape) == ((2, 20 * 28, 8), (2, 5 * 7, 32))
    assert torch.equal(last.cls, resnet(pixels).cls)
    assert [tokens.cls.shape for tokens in resnet.last(pixels, 4)] == [(2, 32)]


@pytest.mark.parametrize("build_one", [model, bottleneck])
def test_only_the_last_block_knows_its_width(build_one: Any) -> None:
    narrow, wide = (build_one(last_width=width).state_dict() for width in (24, 96))
    stock = build_one().state_dict()
    last = "layers.2.1."
    for name, tensor in stock.items():
        if not name.startswith(last):
            assert torch.equal(tensor, narrow[name])
            assert torch.equal(tensor, wide[name])
    changed = {name for name in wide if name not in stock or wide[name].shape != stock[name].shape}
    assert {name[: len(last)] for name in changed} == {last}
    end = f"{last}branch.{len(build_one().layers[-1][-1].branch) - 1}"
    assert {name for name in changed if name.endswith("0.weight")} == {f"{end}.0.weight", f"{last}shortcut.0.weight"}
    assert torch.equal(narrow[f"{last}branch.0.0.weight"], wide[f"{last}branch.0.0.weight"])


@pytest.mark.parametrize("build_one", [model, bottleneck])
@pytest.mark.parametrize("last_width", [None, 24])
def test_without_its_branch_a_block_is_its_shortcut(build_one: Any, last_width: int | None) -> None:
    resnet, x = build_one(last_width=last_width, zero_gamma=True), torch.randn(2, 64, 6, 6)
    block = resnet.layers[-1][-1]
    x = x[:, : resnet.config.widths[-1]]
    assert torch.equal(block(x), block.shortcut(x).relu())
    assert (last_width is None) == isinstance(block.shortcut, torch.nn.Identity)


def test_features_are_never_negative_and_some_are_zero() -> None:
    patches = model(last_width=40)(torch.randn(4, 3, 24, 24)).patches
    assert patches.min() == 0
    assert 0.1 < float((patches == 0).float().mean()) < 0.9


def test_initial_weights_are_those_of_he() -> None:
    weight = model(widths=(64, 128), depths=(1, 1)).state_dict()["layers.1.0.branch.0.0.weight"]
    assert float(weight.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_recomputed_stages_give_the_same_gradients_and_statistics() -> None:
    plain, again, pixels = model(), model(), torch.randn(4, 3, 24, 24)
    again.recompute = True
    for resnet in (plain, again):
        resnet(pixels).cls.square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), again.parameters(), strict=True))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), again.buffers(), strict=True))
    assert int(again.state_dict()["layers.0.0.branch.0.1.num_batches_tracked"]) == 1


def test_what_is_saved_is_loaded_whatever_the_kind(tmp_path: Path) -> None:
    resnet, pixels = bottleneck(last_width=24), torch.randn(2, 3, 24, 24)
    resnet(pixels)
    resnet.save(str(tmp_path))
    loaded = load_backbone(str(tmp_path)).eval()
    assert isinstance(loaded, ResNet)
    assert loaded.config == resnet.config
    assert torch.equal(loaded(pixels).cls, resnet.eval()(pixels).cls)
    assert torch.equal(load_model(str(tmp_path))(pixels).cls, loaded(pixels).cls)


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": [1, 1, 10**9]},
        {"depths": [1, 1]},
        {"widths": [8, 16, 10**9]},
        {"widths": [8, 16, -32]},
        {"last_width": 10**12},
        {"stem_width": 10**9},
        {"block": "huge"},
        {"widths": [8, 16, "32"]},
        {"kind": "forest"},
        {"kind": 3},
        {"depth": 4},
        {"std": [0.0, 0.1, 0.1]},
    ],
    ids=str,
)
def test_a_config_that_lies_takes_no_memory(changes: dict[str, Any], tmp_path: Path) -> None:
    model().save(str(tmp_path))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(UserError, match="holds no model that granary can read"):
        load_model(str(tmp_path))


def test_a_size_has_random_weights_by_name() -> None:
    resnet = load_model("random:resnet18-thin?img_size=24&stem=small", seed=3)
    assert isinstance(resnet, ResNet)
    assert (resnet.config.stem, resnet.config.img_size, resnet.config.grid) == ("small", 24, 3)
    torch.manual_seed(3)
    assert torch.equal(build(resnet.config).state_dict()["stem.0.0.weight"], resnet.state_dict()["stem.0.0.weight"])
    with pytest.raises(UserError, match="unknown option 'patch_size'; known: img_size, stem"):
        load_model("random:resnet18?patch_size=4")
