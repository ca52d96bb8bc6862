"""How much nearer two sets of things lie to one set of attributes than to another, and how answers differ by group.

Caliskan et al. 2017 (arXiv 1608.07187, WEAT), May et al. 2019 (arXiv 1903.10561, SEAT), Ross et al. 2021 (arXiv
2002.08911, with pictures). Shapes: n and m things of the two sets, A and B attributes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EXACT = 50_000  # ways to part the things that are all tried
TOLERANCE = 1e-9


def association(with_a: Tensor, with_b: Tensor) -> Tensor:
    """Return how much more each thing is like the first attributes: scores (n, A), (n, B) -> (n,) float64."""
    return with_a.double().mean(dim=1) - with_b.double().mean(dim=1)


def effect_size(x: Tensor, y: Tensor) -> float | None:
    """Return the difference of the mean associations in standard deviations of all; None where they are all equal.

    Args:
        x, y: (n,), (m,) of `association`; the deviation is that of a sample, divided by n + m - 1.
    """
    std = float(torch.cat([x, y]).double().std())
    difference = float(x.double().mean() - y.double().mean())
    return difference / std if std > TOLERANCE else None


def permutation_p(x: Tensor, y: Tensor, seed: int = 0, draws: int = EXACT) -> float:
    """Return how often things parted by chance differ at least as much: the one-sided p of `effect_size`.

    All ways to part them into n and m where these are no more than `draws`; else so many by chance, with the given one.

    Args:
        x, y: as in `effect_size`.
        seed: of chance.
        draws: parts that are tried at most.
    """
    values = torch.cat([x, y]).double().numpy()
    size, bound = len(x), float(x.double().sum()) - TOLERANCE * max(1.0, float(np.abs(values).sum()))
    if math.comb(len(values), size) <= draws:
        sums = [values[list(chosen)].sum() for chosen in itertools.combinations(range(len(values)), size)]
        return float(np.mean(np.array(sums) >= bound))
    random = np.random.default_rng(seed)
    hits = sum(random.permutation(values)[:size].sum() >= bound for _ in range(draws))
    return float((1 + hits) / (1 + draws))


def rates(values: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """Return the mean of values (n,) in each group."""
    names = sorted(set(groups))
    member = np.array(groups)
    return {name: float(values[torch.from_numpy(member == name)].double().mean()) for name in names}


def disparity(by_group: dict[str, float]) -> dict[str, float | None]:
    """Return the largest difference of the rates of groups, and the smallest over the largest, None where that is 0."""
    low, high = min(by_group.values()), max(by_group.values())
    return {"difference": high - low, "ratio": low / high if high else None}
