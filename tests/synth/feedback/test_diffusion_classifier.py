"""Diffusion classifiers: closed forms of denoisers that are known, ties of equal classes, and a small trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from measuring import measure
from PIL import Image
from tiny_pipelines import CLASSES, classes_in_pixels, unconditional
from tiny_shards import encoded, sample, write_shards
from torch import Tensor

from granary.curation.errors import UserError
from granary.synth.feedback.diffusion import bayes
from granary.synth.feedback.diffusion.bayes import BayesOptions, noise_errors, noise_of
from granary.synth.feedback.diffusion.generator import GeneratorFit, train_generator

ALPHAS = DDPMScheduler().alphas_cumprod.double()
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def noise(count: int = 5, side: int = 4) -> tuple[Tensor, Tensor]:
    times = torch.linspace(100, 900, count).long()
    return times, torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def points(prediction: str, means: Tensor) -> bayes.Denoiser:
    """The best denoiser of classes that are one picture each, (C, 1, h, w): x0 is the mean, whatever the sample."""

    def denoiser(x: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        alpha, sigma = float(ALPHAS[int(time)] ** 0.5), float((1 - ALPHAS[int(time)]) ** 0.5)
        clean = means[classes]
        eps = (x - alpha * clean) / sigma
        return {"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean}[prediction]

    return denoiser


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_of_point_masses_the_error_is_the_distance_at_the_signals_share(prediction: str) -> None:
    """eps' - eps = alpha / sigma (x0 - mean): the error is the mean of alpha^2 / sigma^2 times |x0 - mean|^2 / d."""
    clean = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    means = torch.cat([clean[:2] + 0.1, torch.zeros(1, 1, 4, 4)])
    found = noise_errors(points(prediction, means), clean, noise(), ALPHAS, prediction, 3)
    share = (ALPHAS[noise()[0]] / (1 - ALPHAS[noise()[0]])).mean()
    expected = share * (clean[:, None] - means[None]).double().square().mean(dim=(2, 3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert found.argmin(dim=1).tolist()[:2] == [0, 1]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_outputs_stand_for_the_noise(prediction: str) -> None:
    x0, eps, alpha, sigma = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), 0.6, 0.8
    output = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[prediction]
    torch.testing.assert_close(noise_of(prediction, output, alpha * x0 + sigma * eps, alpha, sigma), eps)


def test_a_denoiser_that_ignores_the_class_ties_and_is_wrong() -> None:
    clean = torch.randn(4, 1, 4, 4)
    errors = noise_errors(lambda x, time, classes: 0.3 * x, clean, noise(), ALPHAS, "epsilon", 3)
    assert torch.equal(errors[:, :1].expand(-1, 3), errors)
    found = bayes.of_errors(errors, torch.tensor([0, 1, 2, 0]))
    assert (found["top1"], found["ties"], found["top1.chance"]) == (0, 1, pytest.approx(1 / 3))


def test_the_noise_of_a_picture_does_not_depend_on_its_neighbours() -> None:
    clean = torch.randn(5, 1, 4, 4)
    denoiser = points("epsilon", torch.zeros(2, 1, 4, 4))
    together = noise_errors(denoiser, clean, noise(), ALPHAS, "epsilon", 2)
    alone = torch.cat([noise_errors(denoiser, one[None], noise(), ALPHAS, "epsilon", 2) for one in clean])
    torch.testing.assert_close(together, alone)


def grey(value: int, label: str | None) -> dict[str, Any]:
    image = Image.fromarray(np.full((8, 8, 3), value, np.uint8))
    return sample(encoded(image, "PNG"), image.size, label=label)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("untrained")
    classes_in_pixels().save_pretrained(folder, safe_serialization=True)
    return str(folder)


def test_a_run_is_classified_whatever_the_batch(untrained: str, tmp_path: Path) -> None:
    rows = [grey(20 * n, CLASSES[n % 3]) for n in range(7)]
    rows += [grey(200, "horse"), grey(210, None), {**grey(220, "cat"), "image": {"bytes": b"broken", "path": "b.png"}}]
    run = str(write_shards(tmp_path / "run", rows))
    one, other = (measure(bayes, untrained, run, device="cpu", noises=3, batch=batch) for batch in (2, 16))
    assert one == {name: pytest.approx(value, abs=1e-6) for name, value in other.items()}
    assert (one["pictures"], one["pictures.unlabelled"], one["pictures.unreadable"]) == (7, 2, 1)
    assert len(one.settings["dead"]) == 1  # type: ignore[arg-type]
    assert one["pictures.classes"] == 3
    assert one["ties"] == 0


def test_times_are_spread_between_the_ends(untrained: str) -> None:
    from granary.synth.feedback.diffusion.loading import load_pipeline

    device = torch.device("cpu")
    denoiser = bayes.PixelDenoiser(load_pipeline(untrained, None, device, "float32")[0], device, untrained)
    times, noises = denoiser.noise(BayesOptions(noises=4), 0)
    assert times.tolist() == [125, 375, 625, 875]
    assert noises.shape == (4, 1, 8, 8)
    assert denoiser.noise(BayesOptions(noises=2, first=0.5, last=0.6), 0)[0].tolist() == [525, 575]
    assert torch.equal(denoiser.noise(BayesOptions(noises=4), 0)[1], noises)
    assert not torch.equal(denoiser.noise(BayesOptions(noises=4), 1)[1], noises)


def test_a_model_whose_classes_are_one_ties(untrained: str, tmp_path: Path) -> None:
    pipe = classes_in_pixels()
    pipe.unet.class_embedding.weight.data[:] = pipe.unet.class_embedding.weight.data[:1]
    pipe.save_pretrained(tmp_path / "model", safe_serialization=True)
    run = str(write_shards(tmp_path / "run", [grey(20 * n, CLASSES[n % 3]) for n in range(6)]))
    found = measure(bayes, str(tmp_path / "model"), run, device="cpu", noises=4)
    assert (found["top1"], found["ties"]) == (0, 1)


def test_a_trained_model_knows_its_classes(tmp_path: Path) -> None:
    labels = np.arange(60) % 2
    images = np.zeros((60, 8, 8), np.uint8)
    images[labels == 0, :4], images[labels == 1, 4:] = 255, 255
    fit = GeneratorFit(
        steps=60, size=8, channels=(16,), layers=1, batch=16, lr=1e-2, ema_decay=0.9, prediction="sample"
    )
    train_generator(images, labels, ["above", "below"], str(tmp_path / "model"), fit)
    rows = [
        sample(
            encoded(Image.fromarray(np.roll(picture, n % 2, axis=1)), "PNG"), (8, 8), label=("above", "below")[label]
        )
        for n, (picture, label) in enumerate(zip(images[:12], labels[:12], strict=True))
    ]
    found = measure(bayes, str(tmp_path / "model"), str(write_shards(tmp_path / "run", rows)), device="cpu", noises=8)
    assert found["top1"] == found["top1.mean_per_class"] == 1


def test_what_is_wrong_is_a_sentence(untrained: str, tmp_path: Path) -> None:
    run = str(write_shards(tmp_path / "run", [grey(0, "horse"), grey(50, "cow")]))
    with pytest.raises(UserError, match=r"no label of .* is a class of the model; it has cat, dog, owl"):
        measure(bayes, untrained, run, device="cpu")
    unconditional().save_pretrained(tmp_path / "ddpm", safe_serialization=True)
    with pytest.raises(UserError, match="is a DDPMPipeline; give a class-conditional model of pixels"):
        measure(bayes, str(tmp_path / "ddpm"), run, device="cpu")
    with pytest.raises(UserError, match=r"options.first: 0.5 is not right; it must be below options.last, 0.5"):
        measure(bayes, untrained, run, device="cpu", first=0.5, last=0.5)
    with pytest.raises(UserError, match="dtype: 'int8' is not right"):
        measure(bayes, untrained, run, device="cpu", dtype="int8")
    broken = {**grey(0, "cat"), "image": {"bytes": b"broken", "path": "b.png"}}
    with pytest.raises(UserError, match="has no picture that can be decoded and has a class of the model"):
        measure(bayes, untrained, str(write_shards(tmp_path / "broken", [broken], 1)), device="cpu")


def test_the_command_writes_what_it_went_by(untrained: str, tmp_path: Path) -> None:
    from granary.pipelines.command import main

    run, out = str(write_shards(tmp_path / "run", [grey(9 * n, CLASSES[n % 3]) for n in range(6)])), tmp_path / "s.json"
    words = [
        "evaluate",
        "diffusion-classifier",
        "--model",
        untrained,
        "--data",
        run,
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main([*words, "--options.noises", "2"]) == 0
    written = json.loads(out.read_text())
    assert written["settings"]["used"]["diffusion-classifier"]["noises"] == 2
    assert written["settings"]["used"]["diffusion-classifier"]["times"] == [250, 750]
