"""Classifiers on features: ridge regression in closed form, logistic regression by L-BFGS, many linear ones at once by
SGD, and MLPs of one hidden layer.

Shapes: n pictures, D features, H hidden units, K classes, G points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SGD_BATCH, MOMENTUM = 128, 0.9
STOPPING, PATIENCE = 0.1, 10  # share of the pictures that says when an MLP is best; passes without a better one


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


class MLPHead(NamedTuple):
    """A classifier of one hidden layer: logits relu(((x - mean) / std) W + b) V + c.

    W (D, H), b (H,), V (H, K), c (K,), mean and std (D,), float32.
    """

    weight: Tensor
    bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Return (n, K) on the CPU for features (n, D)."""
        return torch.cat([self.answers(part.to(self.weight)) for part in x.split(16_384)]).cpu()

    def predict(self, x: Tensor) -> Tensor:
        """Return the classes (n,) of features (n, D), on the CPU."""
        return self.logits(x).argmax(dim=1)

    def answers(self, x: Tensor) -> Tensor:
        """Return (n, K) where the weights are, with gradients."""
        return F.relu((x - self.mean) / self.std @ self.weight + self.bias) @ self.out_weight + self.out_bias

    @torch.no_grad()
    def right(self, x: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the share of right answers and minus the cross-entropy: the greater the better."""
        logits = self.answers(x)
        return float((logits.argmax(dim=1) == labels).double().mean()), -float(F.cross_entropy(logits, labels))


Head = LinearHead | MLPHead


def mlp_heads(
    x: Tensor, labels: Tensor, classes: int, rates: Sequence[float], iterations: int, hidden: int = 512, seed: int = 0
) -> list[MLPHead]:
    """Train an MLP for every learning rate by AdamW on standardised features, each as it was after its best pass.

    Which pass is best says a tenth of the pictures that is not trained on, since an MLP soon learns the others by
    heart; all stop when none has become better for ten passes.

    Args:
        x: (n, D).
        labels: (n,) int64.
        classes: K.
        rates: G of them.
        iterations: steps at most, of 128 pictures.
        hidden: H.
        seed: of the tenth, the first weights and the order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    stopping, taught = order.tensor_split([max(1, int(STOPPING * len(x)))])
    first, size = _first_mlp(x[taught], hidden, classes, generator), min(SGD_BATCH, len(taught))
    heads, best, best_pass = [_copied(first) for _ in rates], [((-1.0, 0.0), first)] * len(rates), 0
    groups = [{"params": list(head[:4]), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
    optimiser, every = torch.optim.AdamW(groups), len(taught) // size  # steps of a pass
    for step, rows in zip(range(1, iterations + 1), _orders(len(taught), size, generator), strict=False):
        chosen = taught[rows.to(x.device)]
        _descend(optimiser, heads, x[chosen], labels[chosen])
        if step % every == 0 or step == iterations:
            for number, head in enumerate(heads):
                score = head.right(x[stopping], labels[stopping])
                if score > best[number][0]:
                    best[number], best_pass = (score, _copied(head)), step // every
            if step // every >= best_pass + PATIENCE:
                break
    return [MLPHead._make(tensor.detach() for tensor in head) for _, head in best]


def _descend(optimiser: torch.optim.Optimizer, heads: Sequence[MLPHead], x: Tensor, labels: Tensor) -> None:
    """Take a step of all heads on the same pictures."""
    optimiser.zero_grad()
    torch.stack([F.cross_entropy(head.answers(x), labels) for head in heads]).sum().backward()
    optimiser.step()


def _first_mlp(x: Tensor, hidden: int, classes: int, generator: torch.Generator) -> MLPHead:
    """Return an MLP whose weights are N(0, 2 / D) and N(0, 1 / H), for features like x (n, D)."""
    mean, std = (value.float() for value in _standard(x))
    weight = torch.randn(x.shape[1], hidden, generator=generator) * math.sqrt(2 / x.shape[1])
    out = torch.randn(hidden, classes, generator=generator) / math.sqrt(hidden)
    weights = weight, torch.zeros(hidden), out, torch.zeros(classes)
    return MLPHead._make([*(tensor.to(x.device) for tensor in weights), mean, std])


def _copied(head: MLPHead) -> MLPHead:
    """Return a head of its own memory that can be trained."""
    return MLPHead._make([*(tensor.detach().clone().requires_grad_() for tensor in head[:4]), head.mean, head.std])
