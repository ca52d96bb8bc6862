"""Facts about the small generator: the layout it is saved in, its reproducibility, and what it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, UNet2DModel
from tiny_pipelines import classes_in_pixels, pixel_unet

from granary.curation.errors import UserError
from granary.synth.feedback.diffusion.generator import GeneratorFit, denoising_loss, prepare, train_generator
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline

TINY: dict[str, Any] = {"size": 8, "channels": (16,), "layers": 1, "batch": 16}


def squares(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of two classes: bright above, bright below."""
    labels = np.arange(n) % 2
    images = np.zeros((n, 8, 8), np.uint8)
    images[labels == 0, :4], images[labels == 1, 4:] = 255, 255
    return images, labels


def test_the_saved_model_has_the_layout_of_diffusers(tmp_path: Path) -> None:
    facts = train_generator(*squares(), ["above", "below"], str(tmp_path), GeneratorFit(steps=3, **TINY))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "ClassConditionalPipeline"
    assert index["unet"] == ["diffusers", "UNet2DModel"]
    assert index["id2label"] == {"0": "above", "1": "below"}
    assert sorted(path.name for path in tmp_path.glob("*/*")) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
    ]
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert pipe.classes == ["above", "below"]
    assert UNet2DModel.from_pretrained(tmp_path / "unet").config.num_class_embeds == 3
    assert facts["parameters"] == sum(p.numel() for p in pipe.unet.parameters())
    assert pipe([0, 1], num_inference_steps=2, output_type="pil").images[0].size == (8, 8)


def test_the_same_arguments_give_the_same_bytes_and_leave_the_random_state(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_generator(*squares(), ["above", "below"], str(tmp_path / name), GeneratorFit(steps=4, seed=seed, **TINY))
    files = [(tmp_path / name / "unet/diffusion_pytorch_model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_learns_which_class_is_which(tmp_path: Path) -> None:
    options = {**TINY, "lr": 1e-2, "ema_decay": 0.9, "prediction": "sample"}
    facts = train_generator(*squares(), ["above", "below"], str(tmp_path), GeneratorFit(steps=50, **options))
    assert facts["loss"] < 0.6 * facts["first_loss"]
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(12)]
    images = pipe([0, 1] * 6, num_inference_steps=5, generator=generators, output_type="np").images[..., 0]
    above = images[:, :4].mean(axis=(1, 2)) > images[:, 4:].mean(axis=(1, 2))
    assert (above == np.array([True, False] * 6)).mean() >= 0.9


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_loss_of_a_perfect_denoiser_is_zero(prediction: str) -> None:
    """A denoiser that knows picture and noise, told the three ways."""
    noising, clean = DDPMScheduler(prediction_type=prediction), torch.randn(4, 1, 8, 8).clamp(-1, 1)

    def oracle(noisy: torch.Tensor, t: torch.Tensor, class_labels: torch.Tensor) -> Any:
        abar = noising.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
        velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
        wanted = {"epsilon": noise, "sample": clean, "v_prediction": velocity}[prediction]
        return type("Output", (), {"sample": wanted})

    assert float(denoising_loss(oracle, noising, clean, torch.zeros(4).long())) < 1e-6


def test_the_pipeline_without_classes_and_guidance_is_diffusers_loop() -> None:
    """Against the stock loop of DDIM, written out."""
    torch.manual_seed(0)
    unet, scheduler = pixel_unet(None).eval(), DDIMScheduler()
    pipe = ClassConditionalPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    found = pipe(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(1), output_type="pt")
    sample = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            sample = scheduler.step(unet(sample, t).sample, t, sample).prev_sample
    assert torch.equal(found.images, (sample / 2 + 0.5).clamp(0, 1))
    with pytest.raises(ValueError, match="class_labels"):
        pipe([0])


def test_guidance_of_one_is_none_and_more_moves_away_from_no_class() -> None:
    pipe = classes_in_pixels()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerDiscreteScheduler()

    def draw(scale: float) -> torch.Tensor:
        options = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        return pipe([0, 1], guidance_scale=scale, **options).images

    assert torch.equal(draw(0.0), draw(1.0))
    assert not torch.equal(draw(2.0), draw(1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 8, 8), np.float32)}, "uint8"),
        ({"images": np.zeros((4, 8, 8, 4), np.uint8)}, "uint8"),
        ({"labels": [0, 1, 0]}, "labels must be 4 numbers from 0 to 1"),
        ({"labels": [0, 1, 2, 0]}, "labels must be 4 numbers from 0 to 1"),
        ({"size": 9}, "multiple of 2"),
        ({"size": 4}, "at least 8"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"images": np.zeros((4, 8, 8), np.uint8), "labels": [0, 1, 0, 1], "size": None, **change}
    with pytest.raises(UserError, match=message):
        prepare(arguments["images"], arguments["labels"], ["a", "b"], arguments["size"], 2)


def test_smaller_pictures_are_enlarged_to_the_models_size() -> None:
    pictures, targets = prepare(np.full((2, 5, 5), 255, np.uint8), [0, 1], ["a", "b"], 16, 2)
    assert pictures.shape == (2, 1, 16, 16)
    torch.testing.assert_close(pictures, torch.ones_like(pictures))
    assert targets.tolist() == [0, 1]
