"""Linear classifiers: ridge regression in closed form, logistic regression by L-BFGS, and many at once by SGD.

Shapes: n pictures, D features, K classes, G points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SGD_BATCH, MOMENTUM = 128, 0.9


class LinearHead(NamedTuple):
    """A linear classifier: logits ((x - mean) / std) W + b; W (D, K), b (K,), mean and std (D,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Return (n, K) on the CPU for features (n, D)."""
        weight = self.weight / self.std[:, None]
        bias = self.bias - self.mean @ weight
        return torch.cat([part.to(weight) @ weight + bias for part in x.split(16_384)]).cpu()

    def predict(self, x: Tensor) -> Tensor:
        """Return the classes (n,) of features (n, D), on the CPU."""
        return self.logits(x).argmax(dim=1)


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every feature (D,) float64; a constant feature keeps its scale."""
    mean, std = x.double().mean(dim=0), x.double().std(dim=0)
    return mean, torch.where(std > 1e-6, std, 1.0)


def ridge_heads(x: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]) -> list[LinearHead]:
    """Solve min_W |Z W - Y|^2 + n penalty |W|^2 in closed form, Z standardised features, Y centred one-hot labels.

    Args:
        x: (n, D).
        labels: (n,) int64.
        classes: K.
        penalties: G of them.

    Returns:
        A head for each penalty, float64.
    """
    mean, std = _standard(x)
    z, y = (x - mean) / std, F.one_hot(labels, classes).double()
    share, few = y.mean(dim=0), len(z) < z.shape[1]
    # (Z^T Z + c)^-1 Z^T = Z^T (Z Z^T + c)^-1: the smaller of the two is decomposed, once for all penalties
    values, vectors = torch.linalg.eigh(z @ z.T if few else z.T @ z)
    seen = vectors.T @ (y - share if few else z.T @ (y - share))
    heads = []
    for penalty in penalties:
        weight = vectors @ (seen / (values.clamp(min=0)[:, None] + len(z) * penalty))
        heads.append(LinearHead(z.T @ weight if few else weight, share, mean, std))
    return heads


def logistic_heads(
    x: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], iterations: int = 100
) -> list[LinearHead]:
    """Solve min_W,b mean cross-entropy + penalty / 2 |W|^2 by L-BFGS on standardised features.

    From the greatest penalty to the smallest, each starting where the one before it ended.

    Args:
        x: (n, D).
        labels: (n,) int64.
        classes: K.
        penalties: G of them.
        iterations: for each penalty at most.

    Returns:
        A head for each penalty, float64.
    """
    mean, std = _standard(x)
    z, heads = (x - mean) / std, dict[float, LinearHead]()
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=x.device, requires_grad=True)
    for penalty in sorted(set(penalties), reverse=True):
        _minimise(z, labels, weight, bias, penalty, iterations)
        heads[penalty] = LinearHead(weight.detach().clone(), bias.detach().clone(), mean, std)
    return [heads[penalty] for penalty in penalties]


def _minimise(z: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, penalty: float, iterations: int) -> None:
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(z @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)


@torch.no_grad()
def sgd_heads(
    x: Tensor, labels: Tensor, classes: int, rates: Sequence[float], iterations: int, seed: int = 0
) -> list[LinearHead]:
    """Train a head for every learning rate at once by SGD with momentum 0.9, without weight decay, cosine to 0.

    The gradient of the mean cross-entropy is written out, x^T (softmax - one-hot) / b: the heads share a product.

    Args:
        x: (n, D), not standardised.
        labels: (n,).
        classes: K.
        rates: (G,) for a batch of 256, scaled to the batch.
        iterations: steps, of 128 pictures, over shuffles of all.
        seed: of the first weights, N(0, 0.01), and of the order.
    """
    n, size = len(x), min(SGD_BATCH, len(x))
    generator = torch.Generator().manual_seed(seed)
    first = 0.01 * torch.randn(x.shape[1], 1, classes, generator=generator)
    weight = first.to(x.device).repeat(1, len(rates), 1)  # (D, G, K)
    bias = torch.zeros(len(rates), classes, device=x.device)
    moments = torch.zeros_like(weight), torch.zeros_like(bias)
    scaled = torch.tensor(rates, device=x.device)[:, None] * size / 256  # (G, 1)
    for step, rows in zip(range(iterations), _orders(n, size, generator), strict=False):
        part, truth = x[rows.to(x.device)], F.one_hot(labels[rows.to(x.device)], classes)
        logits = (part @ weight.flatten(1)).unflatten(1, bias.shape) + bias  # (b, G, K)
        error = (logits.softmax(dim=2) - truth[:, None]) / size
        gradients = (part.T @ error.flatten(1)).unflatten(1, bias.shape), error.sum(dim=0)
        rate = scaled * (1 + math.cos(math.pi * step / iterations)) / 2
        for values, moment, gradient in zip((weight, bias), moments, gradients, strict=True):
            moment.mul_(MOMENTUM).add_(gradient)
            values.sub_(rate * moment)
    mean, std = torch.zeros(x.shape[1], device=x.device), torch.ones(x.shape[1], device=x.device)
    return [LinearHead(weight[:, number], bias[number], mean, std) for number in range(len(rates))]


def _orders(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows for ever, each pass over whole batches in a new order."""
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].split(size)
