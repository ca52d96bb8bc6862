"""Parts of classes: their sizes, their nesting, and that no order decides them."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from granary.curation.selection.partition import partition


def pool(sizes: dict[str, tuple[int, int]]) -> tuple[list[str], list[str], np.ndarray]:
    """Return ids, classes and whether there are boxes, of (with boxes, without) of each class."""
    rows = [(label, True) for label, (boxed, _) in sizes.items() for _ in range(boxed)]
    rows += [(label, False) for label, (_, plain) in sizes.items() for _ in range(plain)]
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(rows))]
    return ids, [label for label, _ in rows], np.array([boxed for _, boxed in rows], bool)


SIZES = {"many": (50, 40), "few boxes": (9, 60), "few plain": (30, 3), "one": (1, 0), "no boxes": (0, 12)}


@pytest.mark.parametrize("per_class", [1, 5, 12, 100])
def test_parts_have_the_sizes_of_the_definition(per_class: int) -> None:
    ids, classes, boxed = pool(SIZES)
    parts = partition(ids, classes, boxed, per_class, 0)
    for label, (inside, outside) in SIZES.items():
        own = [
            (part, box)
            for part, name, box in zip(parts.tolist(), classes, boxed.tolist(), strict=True)
            if name == label
        ]
        sizes = {part: sum(p == part for p, _ in own) for part in "ABSX"}
        attacked = min(per_class, inside // 2)
        assert sizes["A"] == sizes["B"] == attacked
        assert sizes["S"] == min(per_class - attacked, outside)
        assert sizes["A"] + sizes["S"] == per_class or outside < per_class - attacked
        assert sum(sizes.values()) == inside + outside
        assert all(box for part, box in own if part in "AB")
        assert not any(box for part, box in own if part == "S")


def test_the_public_part_of_more_is_within_that_of_fewer() -> None:
    ids, classes, boxed = pool(SIZES)
    public = [set(np.flatnonzero(partition(ids, classes, boxed, n, 3) == "X").tolist()) for n in range(1, 60)]
    assert all(larger <= smaller for smaller, larger in itertools.pairwise(public))
    first = [set(np.flatnonzero(partition(ids, classes, boxed, n, 3) == "A").tolist()) for n in range(1, 60)]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(first))


def test_the_order_of_pictures_decides_nothing_and_the_seed_does() -> None:
    ids, classes, boxed = pool(SIZES)
    parts = partition(ids, classes, boxed, 8, 0)
    order = np.random.default_rng(0).permutation(len(ids))
    moved = partition([ids[n] for n in order], [classes[n] for n in order], boxed[order], 8, 0)
    assert moved.tolist() == parts[order].tolist()
    assert partition(ids, classes, boxed, 8, 1).tolist() != parts.tolist()
