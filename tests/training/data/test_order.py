"""Facts about the order of samples: every row once an epoch, whatever is asked first, shares of mixtures kept."""

from __future__ import annotations

import collections
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granary.training.data.order import PERIOD, Mixture, Order, Place


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    streams=st.integers(1, 5),
    window=st.integers(1, 20),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_row_is_read_once_an_epoch(rows: list[int], streams: int, window: int, seed: int) -> None:
    if sum(rows) < streams:
        rows = [*rows, streams]
    order = Order(rows, seed, streams, window)
    for epoch in range(2):
        seen = collections.Counter()
        for stream in range(streams):
            low, high = order.span(stream)
            for position in range(epoch * (high - low), (epoch + 1) * (high - low)):
                found, group, row = order.place(stream, position)
                assert found == epoch
                seen[group, row] += 1
        assert seen == {(group, row): 1 for group, count in enumerate(rows) for row in range(count)}


def test_a_place_does_not_depend_on_what_was_asked_before() -> None:
    rows = [7, 5, 9, 8, 4]
    forwards = [Order(rows, 3, 2, 6).place(1, position) for position in range(60)]
    order = Order(rows, 3, 2, 6)
    backwards = [order.place(1, position) for position in reversed(range(60))]
    assert forwards == backwards[::-1]


def test_epochs_and_seeds_differ_and_neighbours_are_mixed() -> None:
    order = Order([10] * 20, 0, 1, 50)
    first, second = ([order.place(0, p)[1:] for p in range(start, start + 200)] for start in (0, 200))
    assert first != second
    assert first != [Order([10] * 20, 1, 1, 50).place(0, p)[1:] for p in range(200)]
    together = sum(a[0] == b[0] for a, b in itertools.pairwise(first)) / 199
    assert together < 0.35  # rows of one group would be neighbours 9 times of 10 without a window; 1 of 5 with this one


def test_a_stream_touches_few_groups_at_once() -> None:
    order = Order([10] * 100, 0, 2, 40)
    for start in range(0, 400, 40):
        assert len({order.place(0, p)[1] for p in range(start, start + 40)}) <= 5


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot feed"):
        Order([1, 1], 0, 3, 4)


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.5, 0.3, 0.2], [1, 2, 4]])
def test_a_mixture_keeps_its_shares_in_every_block(weights: list[float]) -> None:
    orders = [Order([50] * 4, 7, 2, 30) for _ in weights]
    mixture = Mixture(orders, weights, 7)
    for block in range(2):
        found = collections.Counter(mixture.place(1, p).dataset for p in range(block * PERIOD, (block + 1) * PERIOD))
        for dataset, weight in enumerate(weights):
            assert abs(found[dataset] - PERIOD * weight / sum(weights)) < 1


def test_each_dataset_of_a_mixture_is_read_in_its_own_order() -> None:
    """Leaving the others out gives the order the dataset has alone."""
    orders = [Order([50] * 4, 7, 2, 30), Order([20] * 9, 7, 2, 30)]
    mixture = Mixture(orders, [1, 2], 7)
    places = [mixture.place(0, p) for p in range(3 * PERIOD)]
    for dataset, order in enumerate(orders):
        own = [place for place in places if place.dataset == dataset]
        assert own == [Place(dataset, *order.place(0, p)) for p in range(len(own))]
    switches = np.diff([place.dataset for place in places]) != 0
    assert 0.3 < switches.mean() < 0.6  # 4 of 9 when drawn without order


def test_the_order_of_old_trainings_goes_on() -> None:
    """The hash is that of the places that version 0.1 gave for these seeds."""
    one = Mixture([Order([7, 5, 9, 8, 4], 3, 4, 6)], [1.0], 3)
    two = Mixture([Order([50] * 4, 7, 2, 30), Order([20] * 9, 7, 2, 30)], [1, 2], 7)
    digest = hashlib.sha256()
    for mixture, stream, position in itertools.product((one, two), range(2), range(2100)):
        digest.update(repr(tuple(mixture.place(stream, position))).encode())
    assert digest.hexdigest() == "80fb39f593182ff8cae6ee29d6a5fd4b30f228b8a7d5c3db1b8a1d6953ac6bfb"


def test_epochs_may_end_with_their_last_whole_batch() -> None:
    """27 rows in 2 streams and batches of 8: 3 whole batches an epoch, no row twice; the next leaves out others."""
    order, left = Order([5, 9, 6, 7], 0, 2, 27, part=4), []
    for epoch in range(6):
        places = [order.place(stream, 12 * epoch + at) for stream in range(2) for at in range(12)]
        assert {place[0] for place in places} == {epoch}
        rows = {place[1:] for place in places}
        assert len(rows) == 24
        left.append(frozenset((group, row) for group, count in enumerate([5, 9, 6, 7]) for row in range(count)) - rows)
    assert len(set(left)) == 6
