"""How alike two sets of features of the same pictures are: linear CKA, and how many directions features vary in.

Kornblith et al. 2019 (arXiv 1905.00414): CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T. The
biased HSIC, |Xc^T Yc|_F^2 of centred features, is far too large for fewer pictures than features (0.89 for independent
Gaussians, n = 64, D = 512); HSIC_1 of Song et al. 2012 is unbiased, and so it may be averaged over batches before the
only division (Nguyen et al. 2020, arXiv 2010.15327).

Shapes: n pictures in the same order, D and E features, S and T sites. All is computed in float64. CKA does not change
under orthogonal maps, isotropic scaling and shifts of the features; it does under other invertible maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST = 4  # pictures of an unbiased HSIC
EQUAL = 1e-12  # variance relative to the mean square below which features differ by rounding alone


def cka(x: Tensor, y: Tensor) -> float:
    """Return the biased linear CKA, in 0..1: |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) of centred features.

    Args:
        x: (n, D).
        y: (n, E).

    Raises:
        ValueError: the features of one are the same for all pictures, or rows are missing.
    """
    _check(x, y)
    x, y = centred(x), centred(y)
    return float(ratio(_inner(x, y), _inner(x, x), _inner(y, y)))


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of HSIC_1 over all pictures at once: about 0, also below, for independent features.

    Args:
        x: (n, D), n at least 4.
        y: (n, E).

    Raises:
        ValueError: as `cka`, or fewer than four pictures.
    """
    return minibatch_cka(x, y, len(x))


def minibatch_cka(x: Tensor, y: Tensor, batch: int = 128) -> float:
    """Return the linear CKA of the mean HSIC_1 over batches: each of three terms is averaged first, then divided.

    Args:
        x: (n, D), in an order that has nothing to do with what the pictures show.
        y: (n, E).
        batch: pictures of a batch, one after another; see `batches`.

    Raises:
        ValueError: as `unbiased_cka`.
    """
    _check(x, y)
    one, other = ([kernels([part[rows]]) for rows in batches(len(x), batch)] for part in (x, y))
    return float(ratio(mean_hsic(one, other)[0, 0], mean_hsic(one)[0], mean_hsic(other)[0]))


def hsic1(k: Tensor, m: Tensor) -> float:
    """Return the unbiased HSIC of two kernels (Song et al. 2012, JMLR 13).

    It is [tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)] / (n (n - 3)) of kernels with zero diagonals, and
    is computed as the product of the two `u_centred`.

    Args:
        k, m: (n, n), n at least 4; their diagonals do not count.

    Raises:
        ValueError: fewer than four pictures.
    """
    return float(mean_hsic([u_centred(k).flatten()[None]], [u_centred(m).flatten()[None]]))


def batches(n: int, batch: int) -> list[slice]:
    """Return the rows of equal batches; what is left after the last whole one is left out.

    Args:
        n: rows; fewer than `batch` are one batch.
        batch: rows of a batch.

    Raises:
        ValueError: a batch has fewer than four rows.
    """
    size = min(n, batch)
    if size < LEAST:
        raise ValueError(f"{size} pictures: an unbiased HSIC needs {LEAST} or more in a batch")
    return [slice(start, start + size) for start in range(0, n - size + 1, size)]


def centred(x: Tensor) -> Tensor:
    """Return features less their mean: (n, D) float64; zeros where they differ by no more than rounding."""
    x = x.double()
    c = x - x.mean(dim=0)
    return c if c.square().sum() > EQUAL * x.square().sum() else torch.zeros_like(c)


def gram(x: Tensor) -> Tensor:
    """Return the kernel X X^T of centred features: (n, D) -> (n, n) float64."""
    c = centred(x)
    return c @ c.T


def u_centred(k: Tensor) -> Tensor:
    """Return a kernel whose rows sum to 0 without its diagonal, which is 0: (n, n) -> (n, n) float64.

    Székely and Rizzo 2014 (arXiv 1310.2926), definition 2: the sum of products of two such kernels is n (n - 3) HSIC_1.

    Raises:
        ValueError: fewer than four pictures.
    """
    n = len(k)
    if n < LEAST:
        raise ValueError(f"{n} pictures: an unbiased HSIC needs {LEAST} or more in a batch")
    k = k.double().clone()
    k.fill_diagonal_(0)
    sums = k.sum(dim=1) / (n - 2)
    k += k.sum() / ((n - 1) * (n - 2)) - sums[:, None] - sums
    return k.fill_diagonal_(0)


def kernels(sites: Sequence[Tensor]) -> Tensor:
    """Return what any CKA of a model needs of a batch: (S, n * n) float64, the `u_centred` kernel of every site.

    Args:
        sites: (n, D) of each, n at least 4.
    """
    return torch.stack([u_centred(gram(x)).flatten() for x in sites])


def mean_hsic(one: Sequence[Tensor], other: Sequence[Tensor] | None = None) -> Tensor:
    """Return the mean HSIC_1 over batches: of all pairs of sites (S, T), or of every site with itself (S,).

    Args:
        one: `kernels` of each batch.
        other: those of another model, for the same pictures in the same order; None stands for each site itself.
    """
    if other is None:
        products = [part.square().sum(dim=1) for part in one]
    else:
        products = [part @ theirs.T for part, theirs in zip(one, other, strict=True)]
    sizes = [math.isqrt(part.shape[1]) for part in one]
    return torch.stack([product / (n * (n - 3)) for product, n in zip(products, sizes, strict=True)]).mean(dim=0)


def cka_map(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the minibatch CKA of all pairs of sites, not a number where a site is the same for all pictures.

    Args:
        one: `kernels` of each batch, of S sites.
        other: those of T sites, for the same pictures in the same order.

    Returns:
        (S, T) float64.
    """
    scale = (mean_hsic(one)[:, None] * mean_hsic(other)).sqrt()
    return torch.where(scale > 0, mean_hsic(one, other) / scale, torch.nan)


def ratio(crossed: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Return crossed / sqrt(own other), scalars. Raises ValueError where that is no number: it is never clamped."""
    if not (own > 0 and other > 0):
        raise ValueError("features that are the same for all pictures have no CKA")
    return crossed / (own * other).sqrt()


def participation_ratio(x: Tensor) -> float:
    """Return (sum of l)^2 / sum of l^2, l the eigenvalues of the covariance of features (n, D): 1 to D directions.

    Raises:
        ValueError: the features are the same for all pictures.
    """
    c = centred(x)
    if not c.any():
        raise ValueError("features that are the same for all pictures vary in no direction")
    return float(c.square().sum()) ** 2 / float(_inner(c, c))


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Return |X^T Y|_F^2 of centred features, by the smaller of the two products."""
    if len(x) < x.shape[1] + y.shape[1]:
        return ((x @ x.T) * (y @ y.T)).sum()
    return (x.T @ y).square().sum()


def _check(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} rows: the pictures must be the same")
