"""Who stands for near copies, against components grown by hand from all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from granary.curation.dedup.near_copies import stand_ins


def slow(vectors, contents, rank, threshold, mirrored=None):
    """Grow every component from its best member, over all pairs in float64."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    linked = unit @ unit.T > threshold
    if mirrored is not None:
        across = (mirrored / np.linalg.norm(mirrored, axis=1, keepdims=True)) @ unit.T > threshold
        linked |= across | across.T
    linked |= np.equal.outer(contents, contents)
    result = np.full(len(rank), -1)
    for head in np.argsort(rank):
        waiting = [head] if result[head] < 0 else []
        while waiting:
            member = waiting.pop()
            result[member] = head
            waiting += [other for other in np.flatnonzero(linked[member]) if result[other] < 0]
    return result


def pictures(seed: int, n: int = 120):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, 12))
    vectors = (centres[rng.integers(0, 40, n)] + 0.25 * rng.normal(size=(n, 12))).astype(np.float32)
    contents = np.array([f"{number:03d}" for number in rng.integers(0, 400, n)])
    return vectors, contents, rng.permutation(n), vectors[:, ::-1].copy()


@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.99])
@pytest.mark.parametrize("mirror", [False, True])
def test_stand_ins_are_the_best_of_their_component(threshold: float, mirror: bool) -> None:
    for seed in range(3):
        vectors, contents, rank, mirrored = pictures(seed)
        given = (vectors, contents, rank, threshold, mirrored if mirror else None)
        found = stand_ins(*given)
        assert found.tolist() == slow(*given).tolist()
        assert len(set(found.tolist())) < len(found)


def test_the_order_of_pictures_changes_nothing() -> None:
    vectors, contents, rank, mirrored = pictures(7)
    found = stand_ins(vectors, contents, rank, 0.9, mirrored)
    order = np.random.default_rng(1).permutation(len(rank))
    moved = stand_ins(vectors[order], contents[order], rank[order], 0.9, mirrored[order])
    assert order[moved].tolist() == found[order].tolist()


def test_equal_contents_are_linked_whatever_their_vectors() -> None:
    vectors = np.eye(4)
    vectors[2:] = 0  # a row of zeros resembles nothing
    assert stand_ins(vectors, ["a", "b", "a", "b"], [3, 2, 1, 0], 0.5).tolist() == [2, 3, 2, 3]


def test_no_picture_and_one_alone() -> None:
    assert stand_ins(np.empty((0, 3)), [], np.empty(0, int), 0.5).tolist() == []
    assert stand_ins(np.ones((1, 3)), ["a"], [0], 0.5, np.ones((1, 3))).tolist() == [0]
