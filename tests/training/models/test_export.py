"""A trained model as other libraries read it: the classes of a pipeline, the names and numbers of timm and open_clip.

timm and open_clip are not installed: their forward passes are written out here, with their names, as in their sources.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file
from tiny_trainings import tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.methods.clip import CLIP
from granary.training.methods.supervised import Supervised
from granary.training.models.build import build
from granary.training.models.export import export
from granary.training.models.image_classifier import to_image_classifier
from granary.training.models.registry import load_model
from granary.training.models.resnet_config import ResNetConfig
from granary.training.models.timm_weights import to_timm
from granary.training.models.training import load_training
from granary.training.models.vit_config import ViTConfig

VIT: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "img_size": 16, "patch_size": 4}
RESNET: dict[str, Any] = {"kind": "resnet", "widths": [8, 16], "depths": [1, 2], "stem": "imagenet", "img_size": 16}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (VIT, "ViTForImageClassification"),
    "layer scale": ({**VIT, "layer_scale": 0.3}, "Dinov2ForImageClassification"),
    "registers": ({**VIT, "registers": 2}, "Dinov2WithRegistersForImageClassification"),
    "no class token": ({**VIT, "class_token": False}, "IJepaForImageClassification"),
    "resnet": (RESNET, "ResNetForImageClassification"),
}
CLASSES = {"circle", "cross", "square", "triangle"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_run(tmp_path_factory.mktemp("run"))


def shaken(module: torch.nn.Module) -> None:
    """Make all weights random, none at 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", MODELS)
def test_a_pipeline_gives_the_classes_that_were_trained(kind: str, run: str, tmp_path: Path) -> None:
    model, name = MODELS[kind]
    tiny_training("supervised", run, tmp_path / "train", model=model, optimiser={"lr": 0.01})
    assert export(str(tmp_path / "train"), str(tmp_path / "out")) == (
        f"transformers.{name}.from_pretrained('{tmp_path}/out')"
    )
    trained = load_training(str(tmp_path / "train"))
    assert isinstance(trained, Supervised)
    picture = Image.effect_noise((16, 16), 90).convert("RGB")
    pipe = transformers.pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    scores = {entry["label"]: entry["score"] for entry in pipe(picture, top_k=4)}
    assert scores.keys() == CLASSES
    pixels = pipe.image_processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = trained.head(trained.encoder(pixels).cls).softmax(dim=1)[0]
    torch.testing.assert_close(torch.tensor([scores[label] for label in trained.classes]), expected)
    again = load_model(f"hf:{tmp_path}/out")(pixels)
    torch.testing.assert_close(again.cls, trained.encoder(pixels).cls)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_of_transformers_are_ours_whatever_the_weights(kind: str) -> None:
    settings, _ = MODELS[kind]
    shapes = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    backbone = build(ResNetConfig(**shapes) if kind == "resnet" else ViTConfig(**{"layer_scale": 0.0, **shapes}))
    head = torch.nn.Linear(backbone.config.width, 3)
    shaken(backbone)
    theirs = to_image_classifier(backbone.eval(), head, ["a", "b", "c"])
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs(pixels).logits, head(backbone(pixels).cls), atol=1e-5, rtol=1e-5)
    assert theirs.config.label2id == {"a": 0, "b": 1, "c": 2}


def as_in_timm(config: dict[str, Any], weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """timm's VisionTransformer by its names and arguments: embed, positions of patches, prefix, blocks, norm, pool."""
    given, eps = config["model_args"], 1e-6
    assert (config["architecture"], given["no_embed_class"], given["fc_norm"]) == ("vit_base_patch16_224", True, False)
    width = given["embed_dim"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.conv2d(pixels, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], given["patch_size"])
    x = x.flatten(2).transpose(1, 2) + weights["pos_embed"]
    names = ["cls_token"] * given["class_token"] + ["reg_token"] * (given["reg_tokens"] > 0)
    prefix = [weights[name] for name in names]
    x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
    for number in range(given["depth"]):
        block = f"blocks.{number}"
        scale = [weights[f"{block}.ls{i}.gamma"] if given["init_values"] else 1.0 for i in (1, 2)]
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.reshape(*x.shape[:2], 3, given["num_heads"], -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + scale[0] * linear(attended, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + scale[1] * linear(hidden, f"{block}.mlp.fc2")
    x, first = norm(x, "norm"), given["class_token"] + given["reg_tokens"]
    return linear(x[:, 0] if given["global_pool"] == "token" else x[:, first:].mean(dim=1), "head")


@pytest.mark.parametrize("kind", ["plain", "layer scale", "registers", "no class token"])
def test_timm_computes_what_we_do_from_a_vit(kind: str) -> None:
    backbone = build(ViTConfig(**{"layer_scale": 0.0, **MODELS[kind][0]}))
    head = torch.nn.Linear(16, 3)
    shaken(backbone)
    config, tensors = to_timm(backbone.eval(), head, ["a", "b", "c"])
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(as_in_timm(config, tensors, pixels), head(backbone(pixels).cls), atol=1e-5, rtol=1e-5)
    assert config["label_names"] == ["a", "b", "c"]
    assert config["num_classes"] == 3


def resnet_as_in_timm(config: dict[str, Any], weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """timm's ResNet by its names and arguments, in evaluation mode."""

    def normed(x: Tensor, name: str) -> Tensor:
        parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    x = F.relu(normed(F.conv2d(pixels, weights["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    convolutions = {"resnet18": (3, 3), "resnet50": (1, 3, 1)}[config["architecture"]]
    for stage, depth in enumerate(config["model_args"]["layers"], 1):
        for number in range(depth):
            block, kept = f"layer{stage}.{number}", x
            stride = 2 if stage > 1 and number == 0 else 1
            for i, kernel in enumerate(convolutions, 1):
                step = stride if i == convolutions.index(3) + 1 else 1
                x = F.conv2d(x, weights[f"{block}.conv{i}.weight"], stride=step, padding=kernel // 2)
                x = normed(x, f"{block}.bn{i}")
                x = F.relu(x) if i < len(convolutions) else x
            if f"{block}.downsample.0.weight" in weights:
                kept = normed(
                    F.conv2d(kept, weights[f"{block}.downsample.0.weight"], stride=stride), f"{block}.downsample.1"
                )
            x = F.relu(x + kept)
    return F.linear(x.mean(dim=(2, 3)), weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize(("block", "name"), [("basic", "resnet18"), ("bottleneck", "resnet50")])
def test_timm_computes_what_we_do_from_a_resnet(block: Any, name: str) -> None:
    config = ResNetConfig(img_size=64, widths=(64, 16, 16, 32), depths=(1, 2, 1, 1), block=block, stem_width=64)
    backbone = build(config)
    head = torch.nn.Linear(32, 2)
    shaken(backbone)
    backbone(torch.randn(8, 3, 64, 64))  # moves the running statistics
    theirs, tensors = to_timm(backbone.eval(), head, ["a", "b"])
    assert theirs["architecture"] == name
    assert theirs["model_args"]["channels"] == ([64, 16, 16, 32] if block == "basic" else [16, 4, 4, 8])  # type: ignore[index]
    pixels = torch.randn(2, 3, 64, 64)
    expected = head(backbone(pixels).cls)
    torch.testing.assert_close(resnet_as_in_timm(theirs, tensors, pixels), expected, atol=1e-4, rtol=1e-4)


def clip_as_in_open_clip(config: dict[str, Any], weights: dict[str, Tensor], pixels: Tensor, tokens: Tensor) -> Tensor:
    """Logits of open_clip's CLIP by its names and arguments."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    act = (lambda x: x * torch.sigmoid(1.702 * x)) if config["quick_gelu"] else F.gelu

    def norm(x: Tensor, name: str, settings: dict[str, Any]) -> Tensor:
        eps = settings["norm_kwargs"]["eps"]
        return F.layer_norm(x, (settings["width"],), weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def blocks(x: Tensor, prefix: str, settings: dict[str, Any], heads: int, causal: bool) -> Tensor:
        for number in range(settings["layers"]):
            name = f"{prefix}transformer.resblocks.{number}"
            joint = F.linear(
                norm(x, f"{name}.ln_1", settings),
                weights[f"{name}.attn.in_proj_weight"],
                weights[f"{name}.attn.in_proj_bias"],
            )
            q, k, v = joint.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(x.shape)
            x = x + F.linear(attended, weights[f"{name}.attn.out_proj.weight"], weights[f"{name}.attn.out_proj.bias"])
            hidden = F.linear(
                norm(x, f"{name}.ln_2", settings), weights[f"{name}.mlp.c_fc.weight"], weights[f"{name}.mlp.c_fc.bias"]
            )
            x = x + F.linear(act(hidden), weights[f"{name}.mlp.c_proj.weight"], weights[f"{name}.mlp.c_proj.bias"])
        return x

    x = F.conv2d(pixels, weights["visual.conv1.weight"], stride=vision["patch_size"]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = x + weights["visual.positional_embedding"]
    x = x if vision["no_ln_pre"] else norm(x, "visual.ln_pre", vision)
    x = blocks(x, "visual.", vision, vision["width"] // vision["head_width"], causal=False)
    images = norm(x, "visual.ln_post", vision)[:, 0] @ weights["visual.proj"]
    assert text["pool_type"] == "eos"
    y = weights["token_embedding.weight"][tokens] + weights["positional_embedding"][: tokens.shape[1]]
    y = norm(blocks(y, "", text, text["heads"], causal=True), "ln_final", text)
    y = y[torch.arange(len(y)), (tokens == text["eos_id"]).int().argmax(dim=1)] @ weights["text_projection"]
    return weights["logit_scale"].exp() * F.normalize(images, dim=1) @ F.normalize(y, dim=1).T


def test_open_clip_computes_what_we_do(run: str, tmp_path: Path) -> None:
    tiny_training("clip", run, tmp_path / "train")
    call = export(str(tmp_path / "train"), str(tmp_path / "out"), "open_clip")
    assert call == f"open_clip.create_model_and_transforms('local-dir:{tmp_path}/out')"
    trained = load_training(str(tmp_path / "train"))
    assert isinstance(trained, CLIP)
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    words = ["a circle", "a shape of some colour"]
    padded = {"truncation": True, "padding": "max_length", "max_length": config["text_cfg"]["context_length"]}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = tokenizer(words, return_tensors="pt", **padded)["input_ids"]
    pixels = torch.randn(2, 3, 16, 16)
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    with torch.no_grad():
        images, texts = trained.images(pixels), trained.texts(trained.tokenizer.numbers(words))
        expected = trained.scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    found = clip_as_in_open_clip(config, tensors, pixels, tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_files_of_timm_are_its_names(run: str, tmp_path: Path) -> None:
    tiny_training("supervised", run, tmp_path / "train")
    export(str(tmp_path / "train"), str(tmp_path / "out"), "timm")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    assert set(config["label_names"]) == CLASSES
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["pos_embed"].shape == (1, 16, 16)
    assert weights["head.weight"].shape == (4, 16)


def test_what_does_not_fit_a_format_is_a_sentence(run: str, tmp_path: Path) -> None:
    tiny_training("supervised", run, tmp_path / "rotary", model={**VIT, "heads": 1, "pos_embed": "rotary"})
    tiny_training("supervised", run, tmp_path / "small", model={**RESNET, "stem": "small"})
    tiny_training("supervised", run, tmp_path / "conv", model={**VIT, "stem": "conv"})
    tiny_training("siglip", run, tmp_path / "siglip")
    cases = [
        ("rotary", "transformers", "transformers has no"),
        ("rotary", "timm", "does not fit a model with pos_embed: rotary"),
        ("conv", "transformers", "transformers has no"),
        ("conv", "timm", "does not fit a model with stem: conv"),
        ("small", "transformers", "transformers has no ResNet with these parts"),
        ("small", "timm", "timm's ResNet has the stem: imagenet of 64 channels, four stages"),
        ("small", "open_clip", "open_clip has models of images and texts"),
        ("siglip", "open_clip", "does not fit a model with the pooling of SigLIP"),
        ("small", "onnx", "the formats are transformers, timm, open_clip"),
    ]
    for name, format, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            export(str(tmp_path / name), str(tmp_path / "out"), format)
        assert not (tmp_path / "out").exists()
