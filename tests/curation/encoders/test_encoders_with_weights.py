"""Facts about the encoders that load weights, on tiny random models: equal to the library's own forward pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from granary.curation.encoders import load_encoder
from granary.curation.errors import UserError
from granary.pipelines.engine.encoders import LOADERS
from granary.training.models.vit import VisionTransformer, ViTConfig

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
DINO = {key: value for key, value in TINY.items() if key != "intermediate_size"}
CROPPED = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
SQUEEZED = {"size": {"height": 32, "width": 32}}
MODELS: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "dinov2": ("Dinov2", DINO, BitImageProcessorPil(**CROPPED), "cls"),
    "registers": ("Dinov2WithRegisters", DINO, BitImageProcessorPil(**CROPPED), "cls"),
    "vit": ("ViT", TINY, ViTImageProcessorPil(**SQUEEZED), "cls"),
    "ijepa": ("IJepa", TINY, ViTImageProcessorPil(**SQUEEZED), "mean"),
    "clip": (
        "CLIP",
        {"vision_config": TINY, "text_config": TEXT, "projection_dim": 16},
        CLIPImageProcessorPil(**CROPPED),
        "features",
    ),
    "siglip": ("Siglip", {"vision_config": TINY, "text_config": TEXT}, SiglipImageProcessorPil(**SQUEEZED), "features"),
}


def images() -> list[Image.Image]:
    """Parts of scikit-learn's photographs in several shapes."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    return [*photos, photos[0].crop((0, 0, 90, 200)), photos[1].crop((10, 10, 50, 40)), photos[0].resize((64, 64))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Save a tiny random model of every kind; yields folder and model."""
    made = {}
    for name, (family, settings, processor, _) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**settings)
        model = getattr(transformers, f"{family}Model")(config).eval()
        made[name] = tmp_path_factory.mktemp(name), model
        model.save_pretrained(made[name][0])
        processor.save_pretrained(made[name][0])
    return made


def expected(name: str, model: Any, pool: str) -> np.ndarray:
    """Run processor and model of `transformers` directly, one picture at a time."""
    rows = []
    for image in images():
        pixels = MODELS[name][2](image, return_tensors="pt")
        with torch.inference_mode():
            if pool == "features":
                vision = model.vision_model(**pixels).pooler_output
                rows.append(model.visual_projection(vision) if name == "clip" else vision)
            else:
                tokens = model(**pixels).last_hidden_state
                patches = tokens[:, -16:]  # 32 / 8 = 4 x 4 patches, after class and register tokens
                rows.append(tokens[:, 0] if pool == "cls" else patches.mean(dim=1))
    return F.normalize(torch.cat(rows), dim=1).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_forward_pass_of_transformers(name: str, folders: dict[str, tuple[Path, Any]]) -> None:
    folder, model = folders[name]
    encoder = load_encoder(f"hf:{folder}?batch=2", device="cpu")
    rows = encoder.embed(images())
    np.testing.assert_allclose(rows, expected(name, model, MODELS[name][3]), atol=1e-5)
    assert rows.shape == (5, encoder.dimension)
    assert encoder.side == (40 if "shortest_edge" in MODELS[name][2].size else 32)
    np.testing.assert_allclose(rows[3:4], encoder.embed(images()[3:4]), atol=1e-5)


@pytest.mark.parametrize("name", ["dinov2", "registers", "vit"])
def test_mean_leaves_class_and_register_tokens_out(name: str, folders: dict[str, tuple[Path, Any]]) -> None:
    folder, model = folders[name]
    rows = load_encoder(f"hf:{folder}?pool=mean", device="cpu").embed(images())
    np.testing.assert_allclose(rows, expected(name, model, "mean"), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_extreme_pictures_become_unit_rows(name: str, folders: dict[str, tuple[Path, Any]]) -> None:
    sizes = [(1, 1), (3, 3), (1, 5000), (5000, 3), (3, 40)]
    rows = load_encoder(f"hf:{folders[name][0]}", device="cpu").embed([Image.new("RGB", size) for size in sizes])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_bfloat16_is_near_float32(folders: dict[str, tuple[Path, Any]]) -> None:
    spec = f"hf:{folders['dinov2'][0]}"
    full, half = load_encoder(spec, "cpu"), load_encoder(f"{spec}?dtype=bfloat16", "cpu")
    assert np.sum(full.embed(images()) * half.embed(images()), axis=1).min() > 0.999
    assert full.fingerprint != half.fingerprint


def test_the_fingerprint_follows_weights_and_processor(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, _ = folders["vit"]
    same = shutil.copytree(folder, tmp_path / "same")
    before = load_encoder(f"hf:{folder}", "cpu").fingerprint
    assert load_encoder(f"hf:{same}", "cpu").fingerprint == before
    ViTImageProcessorPil(**SQUEEZED, image_mean=[0.4, 0.4, 0.4]).save_pretrained(same)
    assert load_encoder(f"hf:{same}", "cpu").fingerprint != before
    other = shutil.copytree(folder, tmp_path / "other")
    changed = transformers.ViTModel.from_pretrained(other)
    with torch.no_grad():
        changed.layernorm.bias.add_(1e-3)
    changed.save_pretrained(other)
    assert load_encoder(f"hf:{other}", "cpu").fingerprint != before


def test_weights_drawn_at_random_are_refused(tmp_path: Path) -> None:
    """A ViT saved without pooler gets a new random one at every load."""
    transformers.ViTModel(transformers.ViTConfig(**TINY), add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessorPil(**SQUEEZED).save_pretrained(tmp_path)
    assert load_encoder(f"hf:{tmp_path}", "cpu").dimension == 32
    with pytest.raises(UserError, match="lacks weights that pool=pooler needs"):
        load_encoder(f"hf:{tmp_path}?pool=pooler", "cpu")


def test_a_processor_of_another_size_than_the_model_is_refused(tmp_path: Path) -> None:
    transformers.ViTModel(transformers.ViTConfig(**TINY)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="could not embed a picture"):
        load_encoder(f"hf:{tmp_path}", "cpu")


def test_pickled_weights_are_refused(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, model = folders["vit"]
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_encoder(f"hf:{copy}", "cpu")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf:/no/such/folder", "there is no folder"),
        ("hf:{vit}?pool=max", "pool is 'max'"),
        ("hf:{vit}?batch=0", "batch is '0'"),
        ("hf:{vit}?pool=features", "no projected image features"),
        ("hf:{ijepa}?pool=cls", "no class token"),
        ("torchscript:/no/such/file.pt", "there is no file"),
        ("torchscript:{vit}/config.json", "is not a TorchScript file"),
        ("granary:{vit}", "saved by granary"),
        ("granary:/no/such/folder", "saved by granary"),
    ],
)
def test_a_wrong_spec_is_one_clear_sentence(spec: str, words: str, folders: dict[str, tuple[Path, Any]]) -> None:
    text = spec.format(**{name: folder for name, (folder, _) in folders.items()})
    with pytest.raises(UserError, match=words) as caught:
        load_encoder(text, "cpu", LOADERS.get(text.partition(":")[0], ""))
    assert "\n" not in str(caught.value)


def test_an_absent_device_is_a_clear_sentence(folders: dict[str, tuple[Path, Any]]) -> None:
    with pytest.raises(UserError, match="give auto or cpu"):
        load_encoder(f"hf:{folders['vit'][0]}", "cuda:99")


class Descriptor(torch.nn.Module):
    """Stands for SSCD: a convolution and generalised-mean pooling, for any size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


@pytest.mark.parametrize("resize", ["short", "square"])
def test_torchscript_preprocessing_is_that_of_sscd(resize: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Descriptor().eval()
    path = str(tmp_path / "sscd.pt")
    torch.jit.save(torch.jit.script(module), path)
    encoder = load_encoder(f"torchscript:{path}?resize={resize}&batch=2", "cpu")
    rows = encoder.embed(images())
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for row, image in zip(rows, images(), strict=True):
        scale = 288 / min(image.size)
        size = (320, 320) if resize == "square" else (round(image.width * scale), round(image.height * scale))
        pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR))) / 255
        with torch.inference_mode():
            direct = module(((pixels - mean) / deviation).permute(2, 0, 1)[None])
        np.testing.assert_allclose(row, F.normalize(direct, dim=1)[0].numpy(), atol=1e-5)


def test_torchscript_fingerprint_follows_the_file(tmp_path: Path) -> None:
    prints = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.jit.save(torch.jit.script(Descriptor()), str(tmp_path / f"{seed}.pt"))
        prints.add(load_encoder(f"torchscript:{tmp_path / str(seed)}.pt", "cpu").fingerprint)
        prints.add(load_encoder(f"torchscript:{tmp_path / str(seed)}.pt?resize=square", "cpu").fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_trained_model_embeds_as_it_computes(pool: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(ViTConfig(img_size=32, patch_size=8, width=24, depth=2, heads=2, registers=3)).eval()
    model.save(str(tmp_path))
    encoder = load_encoder(f"granary:{tmp_path}?pool={pool}&batch=2", "cpu", LOADERS["granary"])
    rows = encoder.embed(images())
    mean, deviation = torch.tensor(model.config.mean), torch.tensor(model.config.std)
    for row, image in zip(rows, images(), strict=True):
        square = ImageOps.fit(image, (32, 32), Image.Resampling.BICUBIC)
        pixels = ((torch.from_numpy(np.array(square)) / 255 - mean) / deviation).permute(2, 0, 1)[None]
        with torch.inference_mode():
            tokens = model(pixels)
        direct = tokens.cls if pool == "cls" else tokens.patches.mean(dim=1)
        np.testing.assert_allclose(row, F.normalize(direct, dim=1)[0].numpy(), atol=1e-5)
    assert encoder.dimension == 24
    assert encoder.side == 32
