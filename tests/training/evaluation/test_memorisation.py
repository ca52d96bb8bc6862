"""The déjà vu attack against loops written out from the paper, closed forms, scikit-learn and SciPy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.neighbors import KNeighborsClassifier

from granary.curation.store.sampling import priority
from granary.training.evaluation import memorisation
from granary.training.evaluation.memorisation import (
    Answers,
    Direction,
    attacked,
    by_class,
    confidences,
    deja_vu,
    memorised,
    most_confident,
    nearest,
    quadrants,
    ranked,
    votes,
)

PERCENT = (5, 10, 20, 30, 100)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels_of(count: int, classes: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


# -- neighbours, votes, confidence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_neighbours_are_those_of_brute_force_by_distance_and_not_by_cosine(
    offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memorisation, "CELLS", 5000)  # a few queries at a time
    queries, bank = drawn(100, 24, seed=1) + offset, 2 * drawn(500, 24) + offset
    distances = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    found = nearest(queries, bank, 20)
    assert found.tolist() == distances.topk(20, largest=False).indices.tolist()
    cosines = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(bank, dim=1).T
    assert found.tolist() != cosines.topk(20).indices.tolist()


def test_votes_are_those_of_scikit_learn() -> None:
    queries, bank, labels = drawn(60, 8, seed=2), drawn(300, 8), labels_of(300, 7)
    theirs = KNeighborsClassifier(25, metric="euclidean").fit(bank, labels).predict_proba(queries) * 25
    assert votes(nearest(queries, bank, 25), labels, 7).tolist() == theirs.round().astype(int).tolist()


def test_confidence_is_minus_the_entropy_of_shares_in_nats() -> None:
    cast = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (50, 6)))
    cast[:, 0] += 1
    theirs = [-scipy.stats.entropy(row / row.sum()) for row in cast.numpy()]
    np.testing.assert_allclose(confidences(cast).numpy(), theirs, atol=1e-12)


def test_one_class_is_certain_and_a_hundred_are_not() -> None:
    certain, spread = torch.zeros(1, 200, dtype=torch.int64), torch.zeros(1, 200, dtype=torch.int64)
    certain[0, 3], spread[0, :100] = 100, 1
    assert float(confidences(certain)) == 0
    assert float(confidences(spread)) == pytest.approx(-math.log(100))
    assert float(confidences(spread)) == pytest.approx(-4.60517, abs=1e-5)


def test_equal_votes_are_drawn_by_the_name_and_favour_no_class() -> None:
    cast, ids = torch.full((4000, 4), 5), [f"picture {number}" for number in range(4000)]
    first = ranked(cast, ids, 0)[:, 0]
    assert scipy.stats.chisquare(torch.bincount(first, minlength=4).numpy()).pvalue > 1e-3
    some = [7, 3, 3999, 0]
    assert ranked(cast[:4], [ids[n] for n in some], 0)[:, 0].tolist() == first[some].tolist()
    assert ranked(cast, ids, 1)[:, 0].tolist() != first.tolist()
    uneven = torch.tensor([[1, 0, 4, 2], [0, 3, 0, 1]])
    assert ranked(uneven, ["a", "b"], 0, 4)[0].tolist() == [2, 3, 0, 1]
    assert ranked(uneven, ["a", "b"], 0, 4)[1].tolist()[:2] == [1, 3]


def test_the_share_of_ties_is_told() -> None:
    bank, labels = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 1, 2, 2])
    found = attacked(torch.tensor([[0.4], [10.4]]), torch.tensor([0, 2]), ["a", "b"], bank, labels, 3, 2)
    assert found.ties == 0.5
    assert found.right.tolist()[1]


# -- score and quadrants -----------------------------------------------------------------------------------------------


def answers(right: list[int], confidence: list[float], ids: list[str] | None = None) -> Answers:
    """Return answers of two classes that are right where they are told to be."""
    names = ids or [f"{number:04d}" for number in range(len(right))]
    classes = np.array([[0, 1] if r else [1, 0] for r in right])
    return Answers(names, np.zeros(len(right), np.int64), classes, np.array(confidence, float), 0.0)


def test_each_model_ranks_by_its_own_confidence() -> None:
    """Trap: the target's confidence for both. The reference is right where it is sure, and the target is not."""
    target = answers([1, 0, 0, 0], [0, -1, -2, -3])
    reference = answers([0, 0, 0, 1], [-3, -2, -1, 0])
    found = deja_vu([Direction.of(target, reference)], 0.25)
    assert (found.target, found.reference, found.score) == (1, 1, 0)


def test_the_score_is_signed_and_the_mean_of_two_directions() -> None:
    sets = [answers(list(row), [0] * 4) for row in ([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0])]
    aa, ba, bb, ab = sets
    found = deja_vu([Direction.of(aa, ba), Direction.of(bb, ab)], 1.0)
    assert found.score == pytest.approx(((0.75 + 0.5) - (0.25 + 0)) / 2)
    assert found.directions == pytest.approx((0.5, 0.5))
    assert (found.target, found.reference) == (0.625, 0.125)
    assert deja_vu([Direction.of(ba, aa), Direction.of(ab, bb)], 1.0).score == -found.score
    variance = (0.75 * 0.25 + 0.25 * 0.75 + 0.5 * 0.5 + 0) / 4
    assert found.error == pytest.approx(math.sqrt(variance) / 2)


def test_the_standard_error_is_the_spread_of_scores_of_independent_answers() -> None:
    rng, spread, said = np.random.default_rng(0), [], []
    for _ in range(400):
        pairs = []
        for _ in range(2):
            rows = [rng.random(200) < share for share in (0.6, 0.2)]
            pairs.append(Direction.of(*(answers(row.astype(int).tolist(), rng.random(200).tolist()) for row in rows)))
        found = deja_vu(pairs, 0.2)
        spread.append(found.score)
        said.append(found.error)
    assert np.mean(said) == pytest.approx(np.std(spread), rel=0.1)
    assert np.mean(spread) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(("share", "count"), [(0.05, 3), (0.2, 10), (0.21, 11), (1.0, 51), (1e-9, 1)])
def test_a_share_is_of_the_crops_that_are_there(share: float, count: int) -> None:
    confidence = np.random.default_rng(1).random(51)
    chosen = most_confident(answers([1] * 51, confidence.tolist()), share)
    assert sorted(chosen.tolist()) == sorted(np.argsort(-confidence)[:count].tolist())


def test_equal_confidence_is_drawn_by_the_name() -> None:
    many = answers([1] * 100, [0.0] * 100)
    chosen = most_confident(many, 0.2)
    assert chosen.tolist() != list(range(20))
    order = np.random.default_rng(0).permutation(100)
    moved = answers([1] * 100, [0.0] * 100, [many.ids[n] for n in order])
    assert sorted(moved.ids[n] for n in most_confident(moved, 0.2)) == sorted(many.ids[n] for n in chosen)


def test_shares_of_right_and_wrong_sum_to_one_and_their_difference_is_that_of_the_accuracies() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        sizes = rng.integers(5, 60, 2)
        pairs = [
            Direction.of(*(answers(rng.integers(0, 2, n).tolist(), rng.random(n).tolist()) for _ in range(2)))
            for n in sizes
        ]
        shares, found = quadrants(pairs), deja_vu(pairs, 1.0)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-12)
        assert shares["memorised"] - shares["misrepresented"] == pytest.approx(found.score, abs=1e-12)
        assert shares["correlated"] + shares["memorised"] == pytest.approx(found.target, abs=1e-12)


def test_other_pictures_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="the same pictures"):
        Direction.of(answers([1], [0], ["a"]), answers([1], [0], ["b"]))


# -- whole attacks -----------------------------------------------------------------------------------------------------


def model(seed: int, knows: str, m: int = 150, n: int = 400, width: int = 12, classes: int = 8) -> dict[str, Any]:
    """Return what a stub says: of the set it knows it puts crops near the public pictures of their class."""
    public_labels, centres = labels_of(n, classes, 9), 3 * drawn(classes, width, seed=seed)
    bank = centres[public_labels] + drawn(n, width, seed=seed + 1)
    sets = {}
    for number, part in enumerate("AB"):
        labels = labels_of(m, classes, 20 + number)
        guessed = labels if part == knows else labels_of(m, classes, 40 + number)
        sets[part] = (centres[guessed] + 2 * drawn(m, width, seed=seed + 2 + number), labels)
    return {"bank": bank, "labels": public_labels, "sets": sets, "classes": classes}


def told(one: dict[str, Any], part: str, k: int = 15, order: np.ndarray | None = None) -> Answers:
    crops, labels = one["sets"][part]
    ids = [f"{part}{number:04d}" for number in range(len(labels))]
    if order is not None:
        crops, labels, ids = crops[order], labels[order], [ids[n] for n in order]
    return attacked(crops, labels, ids, one["bank"], one["labels"], one["classes"], k)


def directions(a: dict[str, Any], b: dict[str, Any], order: np.ndarray | None = None) -> list[Direction]:
    return [
        Direction.of(told(a, "A"), told(b, "A", order=order)),
        Direction.of(told(b, "B", order=order), told(a, "B")),
    ]


def slow_tallies(one: dict[str, Any], part: str, k: int) -> tuple[list[list[int]], list[float], list[int]]:
    """Return votes, entropies and labels of the crops of a part, in loops over NumPy rows."""
    crops, labels = (x.numpy() for x in one["sets"][part])
    tallies, entropies = [], []
    for crop in crops:
        distances = [float(((crop - row) ** 2).sum()) for row in one["bank"].numpy()]
        tally = [0] * one["classes"]
        for near in sorted(range(len(distances)), key=lambda i: distances[i])[:k]:
            tally[int(one["labels"][near])] += 1
        tallies.append(tally)
        entropies.append(-sum(v / k * math.log(v / k) for v in tally if v))
    return tallies, entropies, labels.tolist()


def slow_score(a: dict[str, Any], b: dict[str, Any], percent: int, k: int = 15) -> float:
    """Return the score at p %; only equal votes and equal confidence are decided as ours are."""
    accuracies = {}
    for (name, one), part in itertools.product((("A", a), ("B", b)), "AB"):
        tallies, entropies, labels = slow_tallies(one, part, k)
        ids = [f"{part}{number:04d}" for number in range(len(labels))]
        best = ranked(torch.tensor(tallies), ids, 0)[:, 0].tolist()
        drawn_order = priority(0, ids, "confidence").tolist()
        order = sorted(range(len(ids)), key=lambda i: (round(entropies[i], 9), drawn_order[i]))
        chosen = order[: math.floor(percent / 100 * len(ids) + 0.5)]
        accuracies[name + part] = float(np.mean([best[i] == labels[i] for i in chosen]))
    return (accuracies["AA"] + accuracies["BB"] - accuracies["BA"] - accuracies["AB"]) / 2


def test_the_score_is_that_of_loops() -> None:
    a, b = model(0, "A", m=60, n=120), model(50, "B", m=60, n=120)
    for percent in PERCENT:
        assert deja_vu(directions(a, b), percent / 100).score == pytest.approx(slow_score(a, b, percent), abs=1e-12)


def test_one_model_twice_scores_nothing_at_every_share() -> None:
    a = model(0, "A")
    for percent in PERCENT:
        found = deja_vu(directions(a, a), percent / 100)
        assert found.score == 0
        assert found.directions == (0, 0)
    shares = quadrants(directions(a, a))
    assert shares["memorised"] == shares["misrepresented"] == 0


def test_the_order_of_the_rows_of_one_model_changes_nothing() -> None:
    """Trap: rows that are not aligned. A loader may shuffle those of one model."""
    a, b = model(0, "A"), model(50, "B")
    order = np.random.default_rng(0).permutation(150)
    for percent in PERCENT:
        assert deja_vu(directions(a, b), percent / 100) == deja_vu(directions(a, b, order), percent / 100)
    assert quadrants(directions(a, b)) == quadrants(directions(a, b, order))


def test_a_model_that_knows_every_picture_scores_all_but_chance() -> None:
    classes, m = 5, 1500
    centres = 50 * drawn(classes, 6)
    bank_labels = torch.arange(classes).repeat(60)
    bank = centres[bank_labels] + drawn(300, 6, seed=1)
    truth = {part: labels_of(m, classes, seed) for part, seed in (("A", 1), ("B", 2))}

    def stub(knows: str) -> dict[str, Any]:
        sets = {
            part: (centres[labels if part == knows else labels_of(m, classes, 7 + ord(knows))], labels)
            for part, labels in truth.items()
        }
        return {"bank": bank, "labels": bank_labels, "sets": sets, "classes": classes}

    both = [
        Direction.of(told(stub("A"), "A"), told(stub("B"), "A")),
        Direction.of(told(stub("B"), "B"), told(stub("A"), "B")),
    ]
    found, chance = deja_vu(both, 1.0), 1 / classes
    noise = math.sqrt(chance * (1 - chance) / (2 * m))
    assert found.target == 1
    assert found.score == pytest.approx(1 - chance, abs=4 * noise)
    assert quadrants(both)["memorised"] == pytest.approx(1 - chance, abs=4 * noise)
    assert deja_vu(both, 0.2).score == pytest.approx(1 - chance, abs=4 * noise * math.sqrt(5))


def test_what_is_known_by_heart_is_listed_with_the_surest_first() -> None:
    a, b = model(0, "A"), model(50, "B")
    names = [f"class {number}" for number in range(8)]
    (direction, other) = directions(a, b)
    listed = memorised(direction, names, 1000)
    assert len(listed) == round(quadrants([direction])["memorised"] * 150)
    gaps = [float(row["confidence"]) - float(row["reference_confidence"]) for row in listed]  # type: ignore[arg-type]
    assert gaps == sorted(gaps, reverse=True)
    assert all(row["label"] != row["reference_says"] for row in listed)
    table = by_class([direction, other], names)
    assert sum(row["crops"] for row in table.values()) == 300
    mean = sum(row["crops"] * row["target"] for row in table.values()) / 300
    assert mean == pytest.approx(deja_vu([direction, other], 1.0).target)
