"""Class Gaussians of real features, gathered in pieces that merge in any order.

Sums follow Chan, Golub and LeVeque (1983): count, mean and scatter about the mean merge exactly. Covariances are
regularised as in Friedman's regularized discriminant analysis (1989): with S the scatters and n the counts,

    C_y = ((1 - tying) S_y + tying sum_k S_k) / ((1 - tying) n_y + tying sum_k n_k)
    Sigma_y = (1 - shrinkage) C_y + shrinkage tr(C_y) / d I

so that a class of five images, of rank four, leans on the others and stays positive definite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from granary.curation.errors import UserError

if TYPE_CHECKING:  # sums are merged where no network runs
    import torch
    from torch import Tensor

Array = NDArray[np.float64]


@dataclass
class ClassSums:
    """Counts, means and scatters of the classes seen so far; a mergeable accumulator.

    Args:
        tied: keep one scatter for all classes: d^2 numbers instead of d^2 for each class (1,000 classes of 2,048
            dimensions: 32 MB instead of 32 GB).
    """

    tied: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    means: dict[int, Array] = field(default_factory=dict)
    scatters: dict[int, Array] = field(default_factory=dict)

    def add(self, labels: ArrayLike, features: ArrayLike) -> ClassSums:
        """Add rows and return self.

        Args:
            labels: (n,) int.
            features: (n, d).
        """
        classes, rows = np.asarray(labels), np.asarray(features, np.float64)
        for label in np.unique(classes):
            members = rows[classes == label]
            mean = members.mean(axis=0)
            self._absorb(int(label), len(members), mean)
            self._scatter(int(label), (members - mean).T @ (members - mean))
        return self

    def merge(self, other: ClassSums) -> ClassSums:
        """Add the sums of another and return self; both must be tied or neither."""
        if self.tied != other.tied:
            raise ValueError("tied and untied sums cannot merge")
        for label, count in other.counts.items():
            self._absorb(label, count, other.means[label])
        for key, scatter in other.scatters.items():
            self._scatter(key, scatter)
        return self

    def _absorb(self, label: int, count: int, mean: Array) -> None:
        """Move a class mean, and add what the move adds to the scatter: n m / (n + m) delta delta^T."""
        before = self.counts.get(label, 0)
        delta = mean - self.means.get(label, np.zeros_like(mean))
        total = before + count
        self.counts[label] = total
        self.means[label] = self.means[label] + delta * (count / total) if before else mean
        if before:
            self._scatter(label, np.outer(delta, delta) * (before * count / total))

    def _scatter(self, label: int, scatter: Array) -> None:
        key = -1 if self.tied else label
        self.scatters[key] = self.scatters[key] + scatter if key in self.scatters else scatter

    def finish(
        self, classes: int, tying: float = 0.5, shrinkage: float = 0.1, dimensions: int | None = None
    ) -> ClassGaussians:
        """Return the Gaussians.

        Args:
            classes: number of classes of the classifier.
            tying: in [0, 1], see the module.
            shrinkage: in [0, 1], see the module.
            dimensions: of the principal subspace to work in (PCA of all features), None for all.

        Raises:
            UserError: there are no features.
        """
        if not self.counts:
            raise UserError("hardness: no features to fit class Gaussians to; give real images of the classes")
        projection = self._principal(dimensions)
        pooled = projection.T @ sum(self.scatters.values()) @ projection
        labels = self.counts if not self.tied and tying < 1 else list(self.counts)[:1]
        covariances = [self._covariance(label, projection, pooled, tying, shrinkage) for label in labels]
        means = {label: mean @ projection for label, mean in self.means.items()}
        return ClassGaussians.of(means, covariances, classes, projection)

    def _principal(self, dimensions: int | None) -> Array:
        """Return the leading directions of the total scatter: (d, k), orthonormal."""
        size = len(next(iter(self.means.values())))
        if dimensions is None or dimensions >= size:
            return np.eye(size)
        weights = np.array(list(self.counts.values()), np.float64)[:, None]
        means = np.stack(list(self.means.values()))
        offsets = means - (weights * means).sum(axis=0) / weights.sum()
        total = sum(self.scatters.values()) + (weights * offsets).T @ offsets
        return np.linalg.eigh(total)[1][:, ::-1][:, :dimensions]

    def _covariance(self, label: int, projection: Array, pooled: Array, tying: float, shrinkage: float) -> Array:
        tying = 1.0 if self.tied else tying
        scatter = projection.T @ self.scatters[-1 if self.tied else label] @ projection
        weight = (1 - tying) * self.counts[label] + tying * sum(self.counts.values())
        covariance = ((1 - tying) * scatter + tying * pooled) / weight
        size = len(covariance)
        spread = max(np.trace(covariance) / size, 1e-6 * np.trace(pooled) / size, 1e-12)
        return (1 - shrinkage) * covariance + max(shrinkage, 1e-6) * spread * np.eye(size)


@dataclass(frozen=True)
class ClassGaussians:
    """A Gaussian of features for each class.

    Args:
        means: (classes, k) float32.
        whitening: (classes or 1, k, k) float32, W^T W the inverse covariance; one when it is shared.
        log_norms: (classes,) float32, ln det of the covariance + k ln 2 pi, NaN for a class without features.
        projection: (d, k) float32.
    """

    means: Tensor
    whitening: Tensor
    log_norms: Tensor
    projection: Tensor

    @classmethod
    def of(
        cls, means: Mapping[int, Array], covariances: Sequence[Array], classes: int, projection: Array
    ) -> ClassGaussians:
        """Factor the covariances, one for each mean or one for all; a class that is missing gets a NaN norm."""
        import torch

        k, shared = projection.shape[1], len(covariances) == 1
        centres, log_norms = np.zeros((classes, k)), np.full(classes, np.nan)
        whitening = np.zeros((1 if shared else classes, k, k))
        factors = [np.linalg.cholesky(covariance) for covariance in covariances]
        for number, (label, mean) in enumerate(means.items()):
            factor = factors[0 if shared else number]
            centres[label], whitening[0 if shared else label] = mean, np.linalg.inv(factor)
            log_norms[label] = 2 * np.log(np.diag(factor)).sum() + k * np.log(2 * np.pi)
        return cls(*(torch.from_numpy(a.astype(np.float32)) for a in (centres, whitening, log_norms, projection)))

    def missing(self) -> list[int]:
        """Return the classes that had no features."""
        return self.log_norms.isnan().nonzero().flatten().tolist()

    def to(self, device: torch.device | str) -> ClassGaussians:
        """Return the same on another device."""
        return ClassGaussians(*(t.to(device) for t in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name, to save."""
        return {name: getattr(self, name) for name in ("means", "whitening", "log_norms", "projection")}

    def hardness(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return minus the log density of features (n, d) under the Gaussians of targets (n,): (n,) nats."""
        from granary.synth.feedback.guidance.criteria import hardness

        rows = features.float() @ self.projection
        whitening = self.whitening.expand(len(self.means), -1, -1)[targets]
        return hardness(rows, self.means[targets], whitening, self.log_norms[targets])
