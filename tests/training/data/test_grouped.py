"""Orders by group keep what they promise for any groups, streams and seeds, and ask nothing but a position."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_shards import sample, shapes, write_shards

from granary.curation.errors import UserError
from granary.training.data.crops import Crop
from granary.training.data.grouped import Balanced, Chosen, FewClasses, Rows, combined, members_of, subsampled
from granary.training.data.loader import BatchPlan, Process, batches
from granary.training.data.order import PERIOD, Place
from granary.training.data.reads import Reads
from granary.training.recipe import TrainRecipe
from granary.training.run.setup import open_plan

SEEDS = st.integers(0, 2**63 - 1)
GROUPS = st.lists(st.integers(-1, 4), min_size=1, max_size=60).filter(lambda groups: max(groups) >= 0)


def compact(groups: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Number the groups that occur from 0."""
    return combined([np.asarray(groups)])


def rows_of(count: int) -> Rows:
    """Rows of two datasets of row groups of up to three rows."""
    sizes = [min(3, count - start) for start in range(0, count, 3)]
    return Rows([sizes[:2], sizes[2:]]) if len(sizes) > 2 else Rows([sizes])


def number(rows: Rows, place: Place) -> int:
    return int(rows.starts[rows.firsts[place.dataset] + place.group]) + place.row


# -- groups and rows -------------------------------------------------------------------------------------------------


def test_every_combination_that_occurs_is_a_group() -> None:
    groups = combined([np.array([0, 0, 1, 1, 0, -1]), np.array([2, 0, 2, 2, -1, 0])])
    assert groups.tolist() == [1, 0, 2, 2, -1, -1]
    assert [rows.tolist() for rows in members_of(groups)] == [[1], [0], [2, 3]]


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3))
def test_numbers_go_through_the_datasets_one_after_another(sizes: list[list[int]]) -> None:
    rows = Rows(sizes)
    places = [(d, g, r) for d, groups in enumerate(sizes) for g, count in enumerate(groups) for r in range(count)]
    found = [rows.place(n, 7) for n in range(len(places))]
    assert [(place.dataset, place.group, place.row) for place in found] == places
    assert {place.epoch for place in found} == {7}


# -- balanced --------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(groups=GROUPS, streams=st.integers(1, 3), seed=SEEDS)
def test_balanced_gives_each_group_its_share_and_goes_through_it_evenly(
    groups: list[int], streams: int, seed: int
) -> None:
    codes, rows = compact(groups), rows_of(len(groups))
    members = members_of(codes)
    order = Balanced(rows, members, seed, streams, 16)
    seen: Counter[int] = Counter()
    for stream in range(streams):
        numbers = [number(rows, order.place(stream, position)) for position in range(PERIOD)]
        shares = Counter(codes[numbers].tolist())
        assert set(shares) == set(range(len(members)))
        assert max(shares.values()) - min(shares.values()) <= 1
        seen.update(numbers)
    for numbers in members:
        visits = [seen[row] for row in numbers]
        assert max(visits) - min(visits) <= 1


def test_balanced_keeps_the_group_where_another_row_must_stand_in() -> None:
    codes = np.arange(40, dtype=np.int32) % 3
    rows = rows_of(40)
    order = Balanced(rows, members_of(codes), 1, 2, 16)
    for position in range(50):
        numbers = [number(rows, order.place(1, position, attempt)) for attempt in range(6)]
        assert len(set(codes[numbers])) == 1
        assert len(set(numbers)) > 3


def test_more_groups_than_a_block_has_places_all_come() -> None:
    count = PERIOD + 7
    rows = rows_of(count)
    order = Balanced(rows, members_of(np.arange(count, dtype=np.int32)), 0, 1, 16)
    assert Counter(number(rows, order.place(0, p)) for p in range(2 * count)) == dict.fromkeys(range(count), 2)


# -- few classes -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(groups=GROUPS, streams=st.integers(1, 4), size=st.integers(1, 6), classes=st.integers(1, 5), seed=SEEDS)
def test_a_batch_has_rows_of_exactly_so_many_groups(
    groups: list[int], streams: int, size: int, classes: int, seed: int
) -> None:
    codes, rows, batch = compact(groups), rows_of(len(groups)), streams * size
    members = members_of(codes)
    classes = min(classes, len(members), batch)
    order = FewClasses(rows, members, seed, streams, batch, classes)
    for step in range(5):
        places = [order.place(stream, step * size + i) for stream in range(streams) for i in range(size)]
        numbers = [number(rows, place) for place in places]
        shares = Counter(codes[numbers].tolist())
        assert len(shares) == classes
        assert max(shares.values()) - min(shares.values()) <= 1
        for group, share in shares.items():
            assert len({n for n in numbers if codes[n] == group}) == min(share, len(members[group]))
        assert {place.epoch for place in places} == {step}


def test_few_classes_are_drawn_alike_and_so_are_their_rows() -> None:
    sizes = [5, 10, 20, 40]
    codes = np.repeat(np.arange(4, dtype=np.int32), sizes)
    rows = rows_of(75)
    order = FewClasses(rows, members_of(codes), 3, 1, 4, 2)
    steps = 3000
    numbers = np.array([number(rows, order.place(0, p)) for p in range(4 * steps)])
    shares = np.bincount(codes[numbers]) / len(numbers)
    assert np.abs(shares - 0.25).max() < 5 * np.sqrt(0.5 * 0.5 / steps) / 2
    visits = np.bincount(numbers, minlength=75) * np.asarray(sizes)[codes] * 4 / len(numbers)
    assert 0.5 < visits.min() <= visits.max() < 1.6
    pairs = {tuple(sorted(set(codes[batch].tolist()))) for batch in numbers.reshape(-1, 4)}
    assert len(pairs) == 6


# -- subsample -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(groups=GROUPS, seed=SEEDS)
def test_subsampling_cuts_every_group_to_the_smallest_and_keeps_the_same_rows(groups: list[int], seed: int) -> None:
    codes, rows = compact(groups), rows_of(len(groups))
    members = members_of(codes)
    kept = subsampled(members, seed)
    smallest = min(len(numbers) for numbers in members)
    assert Counter(codes[kept].tolist()) == dict.fromkeys(range(len(members)), smallest)
    order = Chosen(rows, kept, seed, 1, 8)
    for epoch in range(2):
        places = [order.place(0, position) for position in range(epoch * len(kept), (epoch + 1) * len(kept))]
        assert sorted(number(rows, place) for place in places) == kept.tolist()
        assert {place.epoch for place in places} == {epoch}


def test_other_seeds_keep_other_rows() -> None:
    members = [np.arange(30), np.arange(30, 35)]
    kept = {tuple(subsampled(members, seed)) for seed in range(10)}
    assert len(kept) == 10
    assert all(set(range(30, 35)) < set(rows) for rows in kept)


# -- batches ---------------------------------------------------------------------------------------------------------


def plan_of(path: str, kind: str, **changes: Any) -> BatchPlan:
    order = {"kind": kind, **changes.pop("order", {})}
    tree = {"method": "supervised", "data": path, "steps": 1, "batch": 8, "streams": 4, "window": 16, "out": "out"}
    recipe = TrainRecipe.model_validate({**tree, "seed": 5, "order": order, **changes})
    return open_plan(recipe, Reads(("image", "label")), 1)._replace(crops={"image": Crop(1, 8)})


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 shapes: 4 crosses, 12 squares, 76 circles, 4 without a label; three circles cannot be decoded."""
    rows = shapes(96)
    for place, row in enumerate(rows):
        row["label"] = "cross" if place < 4 else "square" if place < 16 else None if place > 91 else "circle"
    for place in (20, 33, 60):
        rows[place] = sample(b"no picture %d" % place, (32, 32), label="circle")
    return str(write_shards(tmp_path_factory.mktemp("run"), rows, group=8))


@pytest.mark.parametrize("kind", ["balanced", "subsample", "few_classes"])
def test_workers_processes_and_restarts_change_nothing(lopsided: str, kind: str) -> None:
    plan = plan_of(lopsided, kind)
    whole = [batch["id"] for batch in batches(plan, range(6), workers=0)]
    assert whole == [batch["id"] for batch in batches(plan, range(6), workers=2)]
    assert whole[3:] == [batch["id"] for batch in batches(plan, range(3, 6), workers=0)]
    halves = [[batch["id"] for batch in batches(plan, range(6), Process(rank, 2), workers=0)] for rank in range(2)]
    assert whole == [left + right for left, right in zip(*halves, strict=True)]


def test_labels_of_batches_are_what_the_order_says(lopsided: str) -> None:
    plan = plan_of(lopsided, "balanced", streams=1, batch=32)
    balanced = torch.cat([batch["label"] for batch in batches(plan, range(32), workers=0)])
    assert sorted(balanced.bincount().tolist()) == [341, 341, 342]
    dead = 0
    for batch in batches(plan_of(lopsided, "few_classes"), range(40), workers=0):
        assert sorted(batch["label"].bincount().tolist())[-2:] == [4, 4]
        dead += len(batch["dead"])
    assert dead > 0
    plan = plan_of(lopsided, "subsample")
    assert plan.rows == 12
    rows = [row for batch in batches(plan, range(3), workers=0) for row in batch["row"].tolist()]
    assert set(range(4)) <= set(rows)
    assert set(rows) <= set(range(92))


def test_groups_may_be_of_several_columns_and_datasets(lopsided: str) -> None:
    plan = plan_of(lopsided, "few_classes", data=[lopsided, lopsided], order={"by": "label,height", "classes": 1})
    assert plan.groups is not None
    assert len(plan.groups) == 192
    assert int(plan.groups.max()) == 2  # all are 32 pixels high
    assert "height" in plan.categories


def test_what_does_not_fit_is_a_sentence(lopsided: str) -> None:
    with pytest.raises(UserError, match="'label' has 3 groups in the data; order few_classes needs 4"):
        plan_of(lopsided, "few_classes", order={"classes": 4})
    with pytest.raises(UserError, match="has no column 'place', which supervised needs"):
        plan_of(lopsided, "balanced", order={"by": "label,place"})
    with pytest.raises(UserError, match=r"data.weight: 2.0 is not right: order balanced draws from the rows of all"):
        plan_of(lopsided, "balanced", data=[{"path": lopsided}, {"path": lopsided, "weight": 2}])
    with pytest.raises(UserError, match="batch: 16 is not right: the data have 12 samples"):
        plan_of(lopsided, "subsample", batch=16)
    with pytest.raises(UserError, match=r"order\.classes: 3 is not right: a batch has 2 rows"):
        plan_of(lopsided, "few_classes", batch=2, streams=2, order={"classes": 3})
