from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.nn import functional

from granary.training.losses.classification import balanced_indices, balanced_softmax, balanced_weights, cross_entropy
from granary.training.models.classifier import Classifier, ClassifierConfig, Fit, augment, fit_classifier, predict

NAMES = tuple("abc")


def blobs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of 8 x 8 pixels whose class is the brightest channel."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 120, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 100
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained() -> Classifier:
    images, labels = blobs(60)
    return fit_classifier(images, labels, NAMES, Fit(steps=40, batch=16, width=8), seed=0)


# -- losses ----------------------------------------------------------------------------------------------------------


def test_balanced_softmax_is_the_formula() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -0.5]], dtype=torch.float64)
    counts, targets = torch.tensor([100, 10, 1]), torch.tensor([2, 0])
    weighted = counts.double() * logits.exp()
    expected = -torch.log(weighted[torch.arange(2), targets] / weighted.sum(dim=1)).mean()
    assert float(balanced_softmax(logits, targets, counts)) == pytest.approx(float(expected), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10_000), st.integers(0, 2**31))
def test_uniform_counts_give_plain_softmax(count: int, seed: int) -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0])
    found = balanced_softmax(logits, targets, torch.full((4,), count))
    assert torch.allclose(found, cross_entropy(logits, targets), atol=1e-12)


def test_a_class_without_pictures_takes_no_part() -> None:
    logits, targets = torch.tensor([[0.5, 1.0, 7.0]]), torch.tensor([1])
    found = balanced_softmax(logits, targets, torch.tensor([3, 3, 0]))
    assert torch.allclose(found, functional.cross_entropy(logits[:, :2], targets))
    assert torch.isfinite(found)


def test_balanced_softmax_raises_the_logits_of_rare_classes() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    balanced_softmax(logits, torch.tensor([1]), torch.tensor([90, 10])).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.9, -0.9])  # plain cross-entropy: 0.5, -0.5


def test_groups_are_drawn_equally_often() -> None:
    groups = np.array([0] * 90 + [1] * 9 + [7])
    weights = balanced_weights(groups)
    assert [weights[groups == g].sum() for g in (0, 1, 7)] == pytest.approx([1 / 3] * 3)
    drawn = groups[balanced_indices(groups, 30_000, np.random.default_rng(0))]
    assert np.bincount(drawn, minlength=8)[[0, 1, 7]] / 30_000 == pytest.approx([1 / 3] * 3, abs=0.02)


# -- the network -----------------------------------------------------------------------------------------------------


def test_a_saved_classifier_comes_back(trained: Classifier, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "model"))
    again = Classifier.load(str(tmp_path / "model"))
    images = torch.rand(4, 3, 8, 8)
    assert again.classes == list(NAMES)
    assert torch.equal(again(images), trained(images))


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"width": 384}')
    with pytest.raises(ValueError, match="another kind"):
        Classifier.load(str(tmp_path))


@pytest.mark.parametrize("side", [5, 8, 21])
def test_pictures_of_any_size_have_logits_and_gradients(trained: Classifier, side: int) -> None:
    images = torch.rand(2, 3, side, side, requires_grad=True)
    trained(images).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().min(dim=0).values.sum()) > 0


def test_preprocessing_is_the_mean_and_deviation_of_the_training_pictures(trained: Classifier) -> None:
    images, _ = blobs(60)
    found = trained.preprocess(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert found.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (found.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_picture_is_judged_whatever_its_batch(trained: Classifier) -> None:
    images = torch.rand(6, 3, 8, 8)
    alone = torch.cat([trained(image[None]) for image in images])
    assert torch.allclose(trained(images), alone, atol=1e-5)


@pytest.mark.parametrize("classes", [("a",), ("a", "a")])
def test_classes_must_be_two_different_ones(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="classes"):
        ClassifierConfig(classes)


# -- training --------------------------------------------------------------------------------------------------------


def test_it_learns(trained: Classifier) -> None:
    images, labels = blobs(90, seed=1)
    assert (predict(trained, images) == labels).mean() > 0.95


def test_the_seed_decides_everything(trained: Classifier) -> None:
    images, labels = blobs(60)
    again, other = (
        fit_classifier(images, labels, NAMES, Fit(steps=40, batch=16, width=8), seed=seed) for seed in (0, 1)
    )
    for name, weights in trained.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name
    assert not torch.equal(trained.head.weight, other.head.weight)


def test_training_leaves_the_global_generator_alone() -> None:
    images, labels = blobs(20)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit_classifier(images, labels, NAMES, Fit(steps=2, batch=4, width=8), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_augmentation_moves_and_mirrors_whole_pictures() -> None:
    images = torch.arange(2 * 3 * 6 * 6).float().reshape(2, 3, 6, 6)
    assert torch.equal(augment(images, 0, False, np.random.default_rng(0)), images)
    moved = augment(images, 1, False, np.random.default_rng(0))
    inner = images[:, :, 2:4, 2:4].flatten(1)
    for before, after in zip(inner, moved.flatten(1), strict=True):
        assert set(before.tolist()) <= set(after.tolist())  # the middle is still there, somewhere
    mirrored = augment(images.repeat(20, 1, 1, 1), 0, True, np.random.default_rng(0))
    kinds = [torch.equal(a, b) for a, b in zip(mirrored, images.repeat(20, 1, 1, 1), strict=True)]
    assert 5 < sum(kinds) < 35
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(mirrored, images.repeat(20, 1, 1, 1), strict=True)]
    assert all(one != other for one, other in zip(kinds, flipped, strict=True))


@pytest.mark.slow
def test_balanced_softmax_helps_the_rare_classes_of_long_tailed_digits() -> None:
    data = load_digits()
    pixels = np.repeat((data.images[..., None] * 255 / 16).astype(np.uint8), 3, axis=3)
    gains = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(pixels))
        test, pool = order[:700], order[700:]
        sizes = [max(3, int(90 * 0.02 ** (label / 9))) for label in range(10)]
        rows = np.concatenate([pool[data.target[pool] == label][:size] for label, size in enumerate(sizes)])
        rare = test[data.target[test] >= 6]
        accuracy = {}
        for loss in ("cross-entropy", "balanced-softmax"):
            options = Fit(steps=200, loss=loss, width=8)
            model = fit_classifier(pixels[rows], data.target[rows], list("0123456789"), options, seed=seed)
            accuracy[loss] = (predict(model, pixels[rare]) == data.target[rare]).mean()
        gains.append(accuracy["balanced-softmax"] - accuracy["cross-entropy"])
    assert np.mean(gains) > 0
