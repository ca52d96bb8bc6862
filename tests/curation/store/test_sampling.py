from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from scipy import stats

from granary.curation.store.sampling import StratifiedSample, bounded_sample, priority


def ids_of(n: int) -> np.ndarray:
    return np.array([hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(n)])


def test_every_member_is_equally_likely():
    ids = ids_of(40)
    drawn = np.zeros(40)
    for seed in range(2000):
        drawn[bounded_sample(ids, 10, seed)] += 1
    # Draws are without replacement: each count has variance 2000 p (1 - p), and 40 - 1 of them are free.
    statistic = ((drawn - 500) ** 2 / (2000 * 0.25 * 0.75)).sum() * 39 / 40
    assert stats.chi2.sf(statistic, 39) > 1e-3


def test_pairs_are_drawn_as_often_as_without_replacement():
    ids = ids_of(12)
    together = sum({0, 1} <= set(bounded_sample(ids, 6, seed)) for seed in range(2000))
    expected = 2000 * (6 / 12) * (5 / 11)
    assert abs(together - expected) < 4 * np.sqrt(expected)


def test_sample_of_a_union_comes_from_the_samples_of_its_parts():
    ids = ids_of(500)
    whole = set(ids[bounded_sample(ids, 40, 7)])
    for split in (1, 20, 250, 499):
        parts = [part[bounded_sample(part, 40, 7)] for part in (ids[:split], ids[split:])]
        union = np.concatenate(parts)
        assert set(union[bounded_sample(union, 40, 7)]) == whole


def test_larger_samples_keep_the_smaller_and_order_does_not_matter():
    ids = ids_of(300)
    shuffled = ids[np.random.default_rng(0).permutation(300)]
    samples = [ids[bounded_sample(ids, n, 3)].tolist() for n in range(0, 310, 31)]
    for small, large in itertools.pairwise(samples):
        assert large[: len(small)] == small
    assert shuffled[bounded_sample(shuffled, 93, 3)].tolist() == samples[3]


def test_cap_and_edges():
    assert len(bounded_sample(ids_of(5), 9, 0)) == 5
    assert bounded_sample(np.array([], dtype=str), 4, 0).tolist() == []
    assert bounded_sample(ids_of(5), 0, 0).tolist() == []
    with pytest.raises(ValueError, match="-1"):
        bounded_sample(ids_of(5), -1, 0)


def test_priority_depends_on_seed_purpose_and_id_only():
    ids = ids_of(100)
    base = priority(1, ids)
    assert base.dtype == np.uint64
    assert np.array_equal(priority(1, ids[::-1])[::-1], base)
    assert not (priority(2, ids) == base).any()
    assert not (priority(1, ids, "other") == base).any()
    assert np.array_equal(priority(1, ids.astype(object)), base)
    assert np.array_equal(priority(1, np.arange(5)), priority(1, ["0", "1", "2", "3", "4"]))


def test_bits_of_a_priority_are_fair():
    bits = np.unpackbits(priority(0, np.arange(4000)).view(np.uint8).reshape(4000, 8), axis=1)
    assert np.abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(4000)


def test_stratified_sample_is_a_bounded_sample_of_every_cell_for_any_split_and_order():
    rng = np.random.default_rng(1)
    ids, cells = ids_of(400), rng.integers(-1, 6, 400)
    limits = np.array([0, 1, 5, 20, 1000, 7])
    expected = {
        (cell, image)
        for cell, limit in enumerate(limits)
        for image in np.flatnonzero(cells == cell)[bounded_sample(ids[cells == cell], limit, 9, "x")]
    }
    for blocks in (1, 3, 40):
        drawn = StratifiedSample(limits, 9, "x")
        for part in np.array_split(rng.permutation(400), blocks):
            drawn.add(cells[part], ids[part], part)
        assert set(zip(drawn.cells, drawn.indices, strict=True)) == expected
        assert np.array_equal(ids[drawn.indices], drawn.ids)


def test_stratified_sample_by_key_keeps_the_smallest_keys():
    rng = np.random.default_rng(2)
    cells, keys = rng.integers(0, 3, 90), rng.permutation(90).astype(np.float32)
    draw = StratifiedSample(np.array([4, 4, 4]), 0)
    for part in np.array_split(np.arange(90), 7):
        draw.add(cells[part], ids_of(90)[part], part, keys[part])
    for cell in range(3):
        assert sorted(keys[draw.indices[draw.cells == cell]]) == sorted(keys[cells == cell])[:4]
