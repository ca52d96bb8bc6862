"""VQA accuracy, selective prediction, Winoground scores, CHAIR, POPE and association tests: closed forms by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from granary.training.evaluation.abstention import (
    area,
    best_threshold,
    coverage_at,
    effective_reliability,
    risk_coverage,
)
from granary.training.evaluation.answers import normalised, vqa_accuracy
from granary.training.evaluation.associations import association, disparity, effect_size, permutation_p, rates
from granary.training.evaluation.compositions import CHANCE, ties, winoground
from granary.training.evaluation.mentions import best_bound, chair, mentioned, polled, vocabulary

# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("equal", "expected"), enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]))
def test_of_ten_answers(equal: int, expected: float) -> None:
    people = ["red"] * equal + [f"other {number}" for number in range(10 - equal)]
    assert vqa_accuracy("red", people) == pytest.approx(expected)


def test_vqa_accuracy_equals_the_mean_over_all_nines() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        people = [str(word) for word in random.choice(["red", "blue", "green"], 10)]
        nines = [min(1, sum(word == "red" for word in nine) / 3) for nine in itertools.combinations(people, 9)]
        assert vqa_accuracy("red", people) == pytest.approx(np.mean(nines))


def test_few_answers_count_exact_matches() -> None:
    assert vqa_accuracy("Red.", ["red"]) == 1
    assert vqa_accuracy("red", ["blue"]) == 0
    assert vqa_accuracy("red", ["blue", "the red", "green"]) == 1
    with pytest.raises(ValueError, match="no answers"):
        vqa_accuracy("red", [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The Dog", "dog"),
        ("two", "2"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("100,978", "100978"),
        ("red, blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("U.S.A.", "usa"),
        ("  a\tcat\n", "cat"),
        ("it’s", "it's"),
    ],
)
def test_answers_that_are_the_same(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("girl's", "girls"), ("2:50", "250"), ("1.5", "15"), ("ill", "i'll")])
def test_answers_that_are_not(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


# -- abstention --------------------------------------------------------------------------------------------------------


def test_effective_reliability_by_hand() -> None:
    """Right, wrong, abstained, right at cost 1: (1 - 1 + 0 + 1) / 4."""
    score, answered = torch.tensor([1.0, 0, 0, 1]), torch.tensor([True, True, False, True])
    assert effective_reliability(score, answered) == 0.25
    assert effective_reliability(score, answered, cost=10) == pytest.approx((1 - 10 + 1) / 4)
    assert effective_reliability(score, torch.zeros(4, dtype=torch.bool)) == 0
    assert effective_reliability(torch.tensor([0.3, 0.0]), torch.tensor([True, True]), 1) == pytest.approx(-0.35)


def test_the_curve_by_hand() -> None:
    curve = risk_coverage(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([1.0, 1, 0, 1]))
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert area(curve) == pytest.approx((1 / 3 + 1 / 4) / 4)
    assert coverage_at(curve, 0) == 0.5
    assert coverage_at(curve, 0.3) == 1
    assert coverage_at(risk_coverage(torch.tensor([1.0]), torch.tensor([0.0])), 0.5) == 0


def test_constant_confidence_has_the_risk_of_all_at_every_coverage() -> None:
    score = torch.tensor([1.0, 0, 0.3, 0, 1, 1])
    curve = risk_coverage(torch.full((6,), 0.5), score)
    torch.testing.assert_close(curve.risk, torch.full((6,), float((1 - score).mean()), dtype=torch.float64))
    assert curve.last.tolist() == [False] * 5 + [True]
    assert coverage_at(curve, 0.1) == 0


def test_equal_confidence_counts_as_the_mean_of_all_orders() -> None:
    confidence, score = torch.tensor([3.0, 2, 2, 2, 1]), torch.tensor([1.0, 0, 1, 1, 0])
    risks = []
    for order in itertools.permutations([1, 2, 3]):
        ordered = 1 - score[[0, *order, 4]].double()
        risks.append(ordered.cumsum(0) / torch.arange(1, 6))
    torch.testing.assert_close(risk_coverage(confidence, score).risk, torch.stack(risks).mean(0))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_equals_a_search(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randint(0, 5, (20,), generator=generator).double()
    score = (torch.rand(20, generator=generator) < 0.5).double()
    found = effective_reliability(score, confidence >= best_threshold(confidence, score, 1.5), 1.5)
    tried = [effective_reliability(score, confidence >= bound, 1.5) for bound in range(7)]
    assert found == pytest.approx(max(tried))


def test_a_model_that_is_always_wrong_abstains() -> None:
    assert best_threshold(torch.rand(5), torch.zeros(5)) == float("inf")


# -- two pictures, two captions ----------------------------------------------------------------------------------------


def test_a_quad_by_hand_and_its_transpose() -> None:
    scores = torch.tensor([[[3.0, 4], [1, 5]], [[3, 1], [4, 5]]])
    found = {name: right.tolist() for name, right in winoground(scores).items()}
    assert found == {"text": [True, False], "image": [False, True], "group": [False, False]}
    assert winoground(torch.tensor([[[2.0, 1], [1, 2]]]))["group"].tolist() == [True]


def test_a_constant_scorer_gets_nothing() -> None:
    scores = torch.full((7, 2, 2), 0.5)
    assert [int(right.sum()) for right in winoground(scores).values()] == [0, 0, 0]
    assert ties(scores).all()
    assert not ties(torch.tensor([[[3.0, 4], [1, 5]]])).any()


def test_random_scores_get_a_quarter_a_quarter_a_sixth() -> None:
    scores = torch.rand(400_000, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, right in winoground(scores).items():
        assert float(right.double().mean()) == pytest.approx(CHANCE[name], abs=0.003)


# -- things mentioned --------------------------------------------------------------------------------------------------

PETS = {"dog": ["puppy"], "cat": [], "car": [], "hot dog": [], "wolf": [], "knife": [], "traffic light": ["stoplight"]}


def test_chair_by_hand() -> None:
    names = vocabulary(PETS)
    said = [mentioned("A dog and a cat in a car.", names)]
    assert said == [{"dog", "cat", "car"}]
    found = chair(said, [{"dog", "car"}])
    assert found == {"chair_i": pytest.approx(1 / 3), "chair_s": 1, "recall": 1}
    found = chair([{"dog"}, {"cat"}, set()], [{"dog", "car"}, {"dog"}, {"cat"}])
    assert found == {"chair_i": 1 / 2, "chair_s": pytest.approx(1 / 3), "recall": 1 / 4}
    assert chair([set()], [set()]) == {"chair_i": None, "chair_s": 0, "recall": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two puppies", {"dog"}),
        ("a Puppy.", {"dog"}),
        ("a hot dog", {"hot dog"}),
        ("hot dogs and a dog", {"hot dog", "dog"}),
        ("wolves with knives", {"wolf", "knife"}),
        ("red traffic lights", {"traffic light"}),
        ("a stoplight", {"traffic light"}),
        ("dogma, a scar, a cartoon", set()),
    ],
)
def test_names_have_synonyms_plurals_and_words_of_their_own(text: str, expected: set[str]) -> None:
    assert mentioned(text, vocabulary(PETS)) == expected


def test_constant_answers_to_a_poll() -> None:
    truth = torch.tensor([True, False] * 10)
    always = polled(torch.ones(20, dtype=torch.bool), truth)
    assert always == {"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "yes_rate": 1}
    never = polled(torch.zeros(20, dtype=torch.bool), truth)
    assert never == {"accuracy": 0.5, "precision": None, "recall": 0, "f1": 0, "yes_rate": 0}


def test_a_poll_equals_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    random = np.random.default_rng(0)
    yes, truth = random.random(50) < 0.6, random.random(50) < 0.4
    found = polled(torch.from_numpy(yes), torch.from_numpy(truth))
    precision, recall, f1, _ = precision_recall_fscore_support(truth, yes, average="binary")
    expected = [accuracy_score(truth, yes), precision, recall, f1, yes.mean()]
    assert list(found.values()) == pytest.approx(expected)


def test_the_best_bound_parts_what_can_be_parted() -> None:
    scores, truth = torch.tensor([0.1, 0.2, 0.6, 0.9]), torch.tensor([False, False, True, True])
    assert best_bound(scores, truth) == pytest.approx(0.4)
    constant = best_bound(torch.full((5,), 0.3), torch.tensor([True, True, True, False, False]))
    assert constant < 0.3  # yes to all


# -- associations ------------------------------------------------------------------------------------------------------


def test_effect_size_and_p_by_hand() -> None:
    """Associations 3, 2 and 1, 0: difference 2, deviation sqrt(5 / 3); one of six ways to part them is as extreme."""
    x, y = torch.tensor([3.0, 2]), torch.tensor([1.0, 0])
    assert effect_size(x, y) == pytest.approx(2 / (5 / 3) ** 0.5)
    assert permutation_p(x, y) == pytest.approx(1 / 6)
    assert permutation_p(y, x) == 1
    assert effect_size(y, x) == pytest.approx(-2 / (5 / 3) ** 0.5)


def test_equal_associations_have_no_effect() -> None:
    same = torch.full((4,), 0.3)
    assert effect_size(same, same) is None
    assert permutation_p(same, same) == 1


def test_all_ways_and_chance_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, generator=generator) + 0.7, torch.randn(7, generator=generator)
    exact = permutation_p(x, y)
    assert permutation_p(x, y, seed=1, draws=3000) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 3000) ** 0.5)
    assert permutation_p(x, y, seed=1, draws=3000) == permutation_p(x, y, seed=1, draws=3000)


def test_an_association_is_a_difference_of_means() -> None:
    found = association(torch.tensor([[1.0, 3], [0, 0]]), torch.tensor([[1.0], [4]]))
    assert found.tolist() == [1, -4]


def test_rates_by_group() -> None:
    found = rates(torch.tensor([1.0, 0, 1, 1]), ["a", "b", "b", "a"])
    assert found == {"a": 1, "b": 0.5}
    assert disparity(found) == {"difference": 0.5, "ratio": 0.5}
    assert disparity({"a": 0.0, "b": 0.0}) == {"difference": 0, "ratio": None}
