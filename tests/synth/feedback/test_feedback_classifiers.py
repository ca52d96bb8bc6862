"""Facts about classifiers: their own preprocessing, followed with gradients; names, never places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_pipelines import CLASSES, save_net, save_vit

from granary.curation.errors import UserError
from granary.synth.feedback.classes import match_classes
from granary.synth.feedback.classifiers import Preprocessing, load_classifier
from granary.training.models.classifier import Classifier, ClassifierConfig

PROCESSORS = {
    "vit": lambda: transformers.ViTImageProcessorPil(),
    "clip": lambda: transformers.CLIPImageProcessorPil(),
    "convnext": lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
    "convnext 384": lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "bit": lambda: transformers.BitImageProcessorPil(),
    "plain": lambda: transformers.ViTImageProcessorPil(do_resize=False, do_normalize=False),
}


def photo(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(300, 260), (64, 64), (50, 120)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_preprocessing_is_the_image_processors(name: str, height: int, width: int) -> None:
    processor: Any = PROCESSORS[name]()
    pixels = photo(height, width)
    wanted = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    found = Preprocessing(processor, name)(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().mean()) < 0.01
    assert float((found - wanted).abs().max()) < 0.12  # Pillow rounds to 8 bits between its two passes


def test_preprocessing_that_is_not_known_is_refused() -> None:
    class Odd(transformers.ViTImageProcessorPil):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = super().__call__(*args, **kwargs)
            found["pixel_values"] = found["pixel_values"].flip(-1)
            return found

    with pytest.raises(UserError, match=r"not known here \(Odd\)"):
        Preprocessing(Odd(), "odd")


def test_a_transformers_classifier_agrees_with_its_library(tmp_path: Path) -> None:
    folder = save_vit(tmp_path / "vit")
    ours = load_classifier(folder, "cpu")
    assert ours.classes == CLASSES
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    pixels = photo(40, 30)
    wanted = model(**processor(Image.fromarray(pixels), return_tensors="pt")).logits
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(ours.logits(images), wanted, atol=0.05, rtol=0.05)
    features = ours.features(images)
    assert features.shape == (1, 16)
    torch.testing.assert_close(model.classifier(features), ours.logits(images))
    assert load_classifier(f"hf:{folder}").fingerprint == ours.fingerprint


@pytest.mark.parametrize("kind", ["vit", "granary"])
def test_gradients_reach_the_pixels(kind: str, tmp_path: Path) -> None:
    if kind == "vit":
        classifier = load_classifier(save_vit(tmp_path))
    else:
        torch.manual_seed(0)
        Classifier(ClassifierConfig(tuple(CLASSES), img_size=16, width=8)).save(str(tmp_path))
        classifier = load_classifier(f"granary:{tmp_path}")
    images = torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for output in (classifier.logits(images), classifier.features(images)):
        (slope,) = torch.autograd.grad(output[0].square().sum() + output[0, 0], images, retain_graph=True)
        assert slope[0].abs().max() > 0
        assert not slope[1].any()  # evaluation mode: no mate has a part in it


def test_a_granary_classifier_is_the_one_that_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(tuple(CLASSES), img_size=16, width=8)).eval()
    model.save(str(tmp_path))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(load_classifier(f"granary:{tmp_path}").logits(images), model(images))
    assert load_classifier(f"granary:{tmp_path}").classes == CLASSES


def test_what_is_no_classifier_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="saved by granary"):
        load_classifier(f"granary:{tmp_path}")
    with pytest.raises(UserError, match="granary:PATH"):
        load_classifier(str(tmp_path))
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16)
    transformers.ViTModel(config).save_pretrained(tmp_path / "headless")
    transformers.ViTImageProcessorPil().save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"lacks trained weights: classifier"):
        load_classifier(str(tmp_path / "headless"))


@pytest.mark.parametrize("kind", ["", "granary:"])
def test_a_classifier_that_was_cut_short_is_one_sentence(kind: str, tmp_path: Path) -> None:
    name = save_net(tmp_path) if kind else save_vit(tmp_path)
    (weights,) = tmp_path.rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^classifier: '"):
        load_classifier(name)


def test_classes_are_matched_by_name_and_never_by_place() -> None:
    assert match_classes(["owl", "cat"], CLASSES, "the classifier") == [2, 0]
    imagenet = ["tench, Tinca tinca", "great_white_shark, white shark", "crane", "crane, hoist"]
    assert match_classes(["Tinca_tinca", "White-Shark", "Crane", "hoist"], imagenet, "it") == [0, 1, 2, 3]


def test_missing_and_ambiguous_names_are_told() -> None:
    with pytest.raises(UserError, match=r"the classifier has no class named 'emu'; it has 'cat', 'dog', 'owl'"):
        match_classes(["cat", "emu"], CLASSES, "the classifier")
    with pytest.raises(UserError, match="2 classes named 'crane'"):
        match_classes(["crane"], ["crane, bird", "crane, machine"], "the model")
