"""Facts about class Gaussians: merging in any order, small classes, libraries' densities."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from granary.curation.errors import UserError
from granary.synth.feedback.gaussians import ClassSums


def rows(counts: tuple[int, ...] = (40, 25, 5), d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    scale = rng.uniform(0.5, 2, (len(counts), d))
    features = 100 + 3 * labels[:, None] + rng.normal(size=(len(labels), d)) * scale[labels]
    return labels, features


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 69), max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_any_bundling_gives_the_one_shot_mean_and_covariance(cuts: list[int], random: object, tied: bool) -> None:
    labels, features = rows()
    pieces = np.split(np.arange(len(labels)), sorted(set(cuts)))
    random.shuffle(pieces)  # type: ignore[attr-defined]
    parts = [ClassSums(tied).add(labels[piece], features[piece]) for piece in pieces]
    while len(parts) > 1:
        random.shuffle(parts)  # type: ignore[attr-defined]
        parts.append(parts.pop().merge(parts.pop()))
    for label in range(3):
        own = features[labels == label]
        assert parts[0].counts[label] == len(own)
        np.testing.assert_allclose(parts[0].means[label], own.mean(axis=0), rtol=1e-9)
        if not tied:
            scatter = np.cov(own.T, bias=True) * len(own)
            np.testing.assert_allclose(parts[0].scatters[label], scatter, rtol=1e-6, atol=1e-6)
    if tied:
        within = sum(np.cov(features[labels == k].T, bias=True) * (labels == k).sum() for k in range(3))
        np.testing.assert_allclose(parts[0].scatters[-1], within, rtol=1e-6, atol=1e-6)


def test_tied_and_untied_sums_do_not_merge() -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        ClassSums(True).merge(ClassSums())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tying", "shrinkage"), [(0.0, 0.1), (0.5, 0.1), (1.0, 0.0)])
def test_hardness_is_minus_the_log_density_of_the_documented_covariance(
    tied: bool, tying: float, shrinkage: float
) -> None:
    labels, features = rows()
    gaussians = ClassSums(tied).add(labels, features).finish(3, tying, shrinkage)
    scatters = [np.cov(features[labels == k].T, bias=True) * (labels == k).sum() for k in range(3)]
    share = 1.0 if tied else tying
    for label in range(3):
        n = (labels == label).sum()
        covariance = (1 - share) * scatters[label] + share * sum(scatters)
        covariance /= (1 - share) * n + share * len(labels)
        ridge = max(shrinkage, 1e-6) * np.trace(covariance) / 6
        library = scipy.stats.multivariate_normal(
            features[labels == label].mean(axis=0), (1 - shrinkage) * covariance + ridge * np.eye(6)
        )
        targets = torch.full((len(features),), label)
        found = gaussians.hardness(torch.from_numpy(features), targets)
        np.testing.assert_allclose(found, -library.logpdf(features), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("tying", [0.0, 0.5])
def test_a_class_of_one_or_five_in_many_dimensions_stays_positive_definite(tying: float) -> None:
    labels, features = rows((60, 5, 1), d=32)
    gaussians = ClassSums().add(labels, features).finish(3, tying, 0.1)
    for label in range(3):
        whitening = gaussians.whitening[label].double()
        precision = whitening.T @ whitening
        assert torch.linalg.eigvalsh(precision).min() > 0
        values = gaussians.hardness(torch.from_numpy(features), torch.full((66,), label))
        assert values.isfinite().all()


def test_principal_directions_are_those_of_sklearn() -> None:
    labels, features = rows((80, 30), d=8)
    gaussians = ClassSums().add(labels, features).finish(2, dimensions=3)
    components = PCA(3).fit(features).components_
    overlap = np.abs(components @ gaussians.projection.numpy())
    np.testing.assert_allclose(overlap, np.eye(3), atol=1e-3)
    assert gaussians.whitening.shape == (2, 3, 3)


def test_a_shared_covariance_is_kept_once() -> None:
    labels, features = rows((9, 9, 9, 9))
    assert ClassSums(tied=True).add(labels, features).finish(4).whitening.shape == (1, 6, 6)


def test_a_class_without_features_is_named() -> None:
    labels, features = rows((9, 9))
    gaussians = ClassSums().add(labels * 2, features).finish(4)
    assert gaussians.missing() == [1, 3]
    with pytest.raises(UserError, match="real images"):
        ClassSums().finish(2)
