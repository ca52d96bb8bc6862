"""CKA and HSIC against definitions written out, closed forms and the traps of both."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from granary.training.evaluation.collapse import rank_me
from granary.training.evaluation.similarity import (
    batches,
    cka,
    cka_map,
    gram,
    hsic1,
    kernels,
    minibatch_cka,
    participation_ratio,
    unbiased_cka,
)


def normal(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed)).Q


def related(n: int = 64) -> tuple[Tensor, Tensor]:
    x = normal(n, 12)
    return x, x @ normal(12, 7, 1) + 0.5 * normal(n, 7, 2)


def u_statistic(k: Tensor, m: Tensor) -> float:
    """HSIC as the mean of its kernel over all tuples of four distinct pictures (Song et al. 2012)."""
    total, count = 0.0, 0
    for i, j, q, r in itertools.permutations(range(len(k)), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        count += 1
    return total / count


def trace_form(k: Tensor, m: Tensor) -> float:
    n, one = len(k), torch.ones(len(k), dtype=torch.float64)
    k, m = (part - part.diag().diag() for part in (k, m))
    product = (k @ m).trace() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((product - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def kernel_form(x: Tensor, y: Tensor) -> float:
    """CKA by the n x n kernels and the centring matrix."""
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / (k.norm() * m.norm()))


@pytest.mark.parametrize("n", [4, 6])
def test_hsic_is_the_mean_over_all_tuples_of_four(n: int) -> None:
    x, y = normal(n, 3), normal(n, 2, 1)
    assert hsic1(x @ x.T, y @ y.T) == pytest.approx(u_statistic(x @ x.T, y @ y.T), abs=1e-10)
    assert hsic1(x @ x.T, y @ y.T) == pytest.approx(trace_form(x @ x.T, y @ y.T), abs=1e-10)


def test_the_kernel_of_centred_features_has_the_same_hsic() -> None:
    x, y = related(20)
    assert hsic1(gram(x), gram(y + 100)) == pytest.approx(trace_form(x @ x.T, y @ y.T), rel=1e-9)


def test_hsic_is_unbiased() -> None:
    """The mean over many small independent samples is 0 within its error, and can be negative in each of them."""
    values = [hsic1(*(part @ part.T for part in (normal(6, 3, s), normal(6, 3, 10_000 + s)))) for s in range(500)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))


@pytest.mark.parametrize("shape", [(40, 12, 7), (10, 30, 20)])
def test_feature_form_equals_kernel_form(shape: tuple[int, int, int]) -> None:
    n, width, other = shape
    x, y = normal(n, width), normal(n, other, 1)
    assert cka(x, y) == pytest.approx(kernel_form(x, y), abs=1e-9)
    assert 0 <= cka(x, y) <= 1


@pytest.mark.parametrize("measure", [cka, unbiased_cka, minibatch_cka])
def test_rotation_scale_and_shift_change_nothing(measure: object) -> None:
    assert callable(measure)
    x, y = related()
    moved = -3 * x @ orthogonal(12) + 50
    assert measure(x, moved) == pytest.approx(1, abs=1e-6)
    assert measure(moved, y) == pytest.approx(measure(x, y), abs=1e-6)
    assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-12)
    assert measure(x, y) < 0.999


def test_an_invertible_map_changes_cka() -> None:
    """Trap: only orthogonal maps and scales leave it as it is."""
    x = normal(512, 64)
    assert unbiased_cka(x, x @ normal(64, 64, 3)) < 0.9


def test_another_order_of_pictures_is_seen() -> None:
    x = normal(256, 8)
    assert abs(unbiased_cka(x, x[torch.randperm(256, generator=torch.Generator().manual_seed(0))])) < 0.1


@pytest.mark.parametrize(("n", "biased"), [(64, 0.89), (256, 0.66), (1024, 0.33)])
def test_few_pictures_make_the_biased_value_large_and_not_the_unbiased_one(n: int, biased: float) -> None:
    x, y = normal(n, 512), normal(n, 512, 1)
    assert cka(x, y) == pytest.approx(biased, abs=0.01)
    assert abs(unbiased_cka(x, y)) < (0.05 if n >= 256 else 0.1)


def test_half_of_the_features_is_the_root_of_one_half() -> None:
    values = [(unbiased_cka(x, x[:, :32]), cka(x, x[:, :32])) for x in (normal(512, 64, seed) for seed in range(5))]
    unbiased, biased = np.mean(values, axis=0)
    assert unbiased == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert biased == pytest.approx(0.73, abs=0.01)


def test_of_one_feature_it_is_the_squared_correlation() -> None:
    x, y = normal(50, 1), normal(50, 1) + normal(50, 1, 1)
    assert cka(x, y) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2, abs=1e-12)


def test_terms_are_averaged_before_the_division() -> None:
    """Trap: the mean of the ratios of batches is another number, and not that of all pictures."""
    x = normal(512, 64)
    y = x[:, :32].clone()
    y[:256] *= 0.05  # in half of the batches hardly anything is there
    shuffled = torch.randperm(512, generator=torch.Generator().manual_seed(0))
    x, y = x[shuffled], y[shuffled]
    whole, ours = unbiased_cka(x, y), minibatch_cka(x, y, 16)
    of_batches = np.mean([unbiased_cka(x[rows], y[rows]) for rows in batches(512, 16)])
    assert ours == pytest.approx(whole, abs=0.03)
    assert abs(of_batches - whole) > 2 * abs(ours - whole)
    by_hand = [
        [trace_form(*(p[rows] @ p[rows].T for p in pair)) for rows in batches(512, 16)]
        for pair in ((x, y), (x, x), (y, y))
    ]
    crossed, own, other = (np.mean(terms) for terms in by_hand)
    assert ours == pytest.approx(crossed / math.sqrt(own * other), rel=1e-9)


def test_batches_of_64_agree_with_all_pictures() -> None:
    x = normal(512, 64)
    assert minibatch_cka(x, x[:, :32], 64) == pytest.approx(unbiased_cka(x, x[:, :32]), abs=0.01)


def test_what_does_not_fill_a_batch_is_left_out_and_few_pictures_are_one_batch() -> None:
    x, y = related(70)
    assert minibatch_cka(x, y, 32) == minibatch_cka(x[:64], y[:64], 32)
    assert minibatch_cka(x, y, 500) == unbiased_cka(x, y)
    assert batches(10, 4) == [slice(0, 4), slice(4, 8)]


def test_without_a_number_there_is_an_error_and_no_clamp() -> None:
    x = normal(16, 4)
    same = torch.full((16, 4), 0.1, dtype=torch.float32) + 1e-9 * normal(16, 4).float()
    for measure in (cka, unbiased_cka, minibatch_cka):
        with pytest.raises(ValueError, match="same for all pictures"):
            measure(x, same)
    with pytest.raises(ValueError, match="same for all pictures"):
        participation_ratio(same)
    with pytest.raises(ValueError, match="needs 4"):
        unbiased_cka(x[:3], x[:3])
    with pytest.raises(ValueError, match="needs 4"):
        hsic1(x[:3] @ x[:3].T, x[:3] @ x[:3].T)
    with pytest.raises(ValueError, match="16 and 15 rows"):
        cka(x, x[:15])


def test_small_differences_that_are_more_than_rounding_count() -> None:
    x = normal(64, 4)
    assert unbiased_cka(x, 1000 + x.float()) == pytest.approx(1, abs=1e-4)


def test_a_map_has_every_pair_and_its_diagonal_is_one() -> None:
    sites = [normal(64, 5), normal(64, 9, 1), related()[1], torch.ones(64, 3)]
    parts = [kernels([site[rows] for site in sites]) for rows in batches(64, 16)]
    found = cka_map(parts, parts)
    for i, j in itertools.product(range(3), range(3)):
        assert float(found[i, j]) == pytest.approx(minibatch_cka(sites[i], sites[j], 16), abs=1e-12)
    torch.testing.assert_close(found[:3, :3], found[:3, :3].T)
    torch.testing.assert_close(found.diagonal()[:3], torch.ones(3, dtype=torch.float64))
    assert found[3].isnan().all()
    assert found[:, 3].isnan().all()


def test_directions_are_counted() -> None:
    wide = normal(20_000, 8)
    assert participation_ratio(wide) == pytest.approx(8, rel=0.01)
    assert participation_ratio(wide[:, :1] @ normal(1, 8) + 5) == pytest.approx(1, abs=1e-9)
    few = normal(10, 50)
    values = np.linalg.eigvalsh(np.cov(few.numpy().T))
    assert participation_ratio(few) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    assert participation_ratio(7 * few @ orthogonal(50) - 3) == pytest.approx(participation_ratio(few), rel=1e-9)


def test_rank_me_is_not_the_participation_ratio() -> None:
    assert rank_me(torch.eye(32)) == pytest.approx(32, rel=1e-3)
    assert rank_me(torch.diag(torch.tensor([2.0, 1, 1]))) == pytest.approx(2.828427, rel=1e-4)
