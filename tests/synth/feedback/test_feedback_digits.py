"""Feedback on a model that has learnt something: scikit-learn's digits, trained here in minutes."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from granary.synth.feedback.classifiers import load_classifier
from granary.synth.feedback.diffusion.generator import GeneratorFit, train_generator
from granary.synth.feedback.gaussians import ClassGaussians, ClassSums
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.recipe import Sampling
from granary.synth.feedback.requests import Drawn, Request
from granary.synth.feedback.sampler import Sampler
from granary.training.models.classifier import Fit, fit_classifier

pytestmark = pytest.mark.slow
OMEGAS = {  # below 0, 0, small, medium
    ("loss", "normalised"): (-0.1, 0.0, 0.03, 0.1),
    ("entropy", "normalised"): (0.0, 0.05, 0.1),
    ("hardness", "normalised"): (-0.1, 0.0, 0.03, 0.1),
    ("loss", "score"): (-1.0, 0.0, 0.3, 1.0),
    ("entropy", "score"): (0.0, 1.0, 4.0),
    ("hardness", "score"): (-0.1, 0.0, 0.01, 0.03),
}
SETTINGS = GeneratorFit(steps=600, channels=(32, 32), lr=4e-3, ema_decay=0.99)
N = 100


class Trained(NamedTuple):
    generator: str
    classifier: str
    gaussians: ClassGaussians
    images: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A generator of all digits, and a classifier of 300 of them."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    images, labels = (digits.images * 255 / 16).round().astype(np.uint8), digits.target
    classes = [str(number) for number in range(10)]
    train_generator(images, labels, classes, str(folder / "generator"), SETTINGS)
    colour = np.repeat(images[..., None], 3, axis=3)
    fit_classifier(colour[:300], labels[:300], classes, Fit(steps=200, width=16), seed=0).save(str(folder / "net"))
    classifier = load_classifier(f"granary:{folder / 'net'}", "cpu")
    with torch.no_grad():
        features = classifier.features(torch.from_numpy(colour[:300]).permute(0, 3, 1, 2).float() / 255)
    gaussians = ClassSums().add(labels[:300], features.numpy()).finish(10)
    return Trained(str(folder / "generator"), f"granary:{folder / 'net'}", gaussians, images, labels)


def draw(trained: Trained, **guidance: object) -> list[Drawn]:
    """Draw ten of each digit, with the same noise whatever the guidance."""
    options = GuidanceOptions(**guidance)  # type: ignore[arg-type]
    sampler = Sampler(trained.generator, trained.classifier, options, Sampling(guidance_scale=2.0), trained.gaussians)
    return sampler.draw([Request(str(i), i, i % 10, i % 10) for i in range(N)], 50)


def recognised(trained: Trained, drawn: list[Drawn]) -> float:
    """Return the share that a judge who knows only real digits takes for the digit asked for."""
    judge = KNeighborsClassifier(5).fit(trained.images.reshape(-1, 64), trained.labels)
    pixels = np.stack([found.image[..., 0] for found in drawn]).reshape(-1, 64)
    return float((judge.predict(pixels) == np.arange(N) % 10).mean())


def test_unguided_samples_look_like_the_digits_asked_for(trained: Trained) -> None:
    assert recognised(trained, draw(trained, omega=0.0)) >= 0.9


@pytest.mark.parametrize(("criterion", "rule"), OMEGAS)
def test_the_mean_final_criterion_rises_strictly_with_omega(trained: Trained, criterion: str, rule: str) -> None:
    omegas = OMEGAS[criterion, rule]
    arms = [draw(trained, criterion=criterion, omega=omega, rule=rule) for omega in omegas]
    means = [float(np.mean([found.value for found in drawn])) for drawn in arms]
    print(criterion, rule, dict(zip(omegas, np.round(means, 4).tolist(), strict=True)))
    assert all(a < b for a, b in itertools.pairwise(means))
    assert recognised(trained, arms[-2]) >= 0.9  # a small omega keeps the digit


def test_less_loss_is_more_accuracy_of_the_classifier(trained: Trained) -> None:
    hits = []
    for omega in (-0.1, 0.0):
        drawn = draw(trained, criterion="loss", omega=omega)
        hits.append(np.mean([found.predicted == int(found.row_id) % 10 for found in drawn]))
    assert hits[0] > hits[1]
