"""BLEU, ROUGE-L and CIDEr-D: the examples of their papers, closed forms, and slow references."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from granary.training.evaluation.caption_scores import bleu, cider_d, clipped_matches, longest_common, rouge_l, words

# The examples of Papineni et al. 2002, section 2.1
PARTY = (
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
    "It is the practical guide for the army always to heed the directions of the party.",
)
GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party."
INSURE = "It is to insure the troops forever hearing the activity guidebook that party direct."
MATS = ("The cat is on the mat.", "There is a cat on the mat.")


@pytest.mark.parametrize(
    ("text", "references", "n", "expected"),
    [
        (GUIDE, PARTY, 1, (17, 18)),
        (INSURE, PARTY, 1, (8, 14)),
        (GUIDE, PARTY, 2, (10, 17)),
        (INSURE, PARTY, 2, (1, 13)),
        ("the the the the the the the", MATS, 1, (2, 7)),
        ("the the the the the the the", MATS, 2, (0, 6)),
    ],
)
def test_modified_precisions_of_the_paper(
    text: str, references: Sequence[str], n: int, expected: tuple[int, int]
) -> None:
    assert clipped_matches(words(text), [words(other) for other in references], n) == expected


def test_bleu_of_a_corpus_by_hand() -> None:
    """1-grams 5 + 4 of 6 + 4, 2-grams 3 + 3 of 5 + 3; lengths 10 against 6 + 5: brevity exp(1 - 11/10)."""
    captions = ["the cat sat on the mat", "two red dogs run"]
    references = [["the cat is on the mat"], ["two red dogs run fast"]]
    expected = math.exp(1 - 11 / 10) * math.sqrt(9 / 10 * 6 / 8)
    assert bleu(captions, references, 2) == pytest.approx(expected)
    assert bleu(captions, references) == pytest.approx(math.exp(-0.1) * (9 / 10 * 6 / 8 * 3 / 6 * 1 / 4) ** 0.25)


def test_bleu_of_equal_captions_is_one_of_others_nothing_and_nothing_is_smoothed() -> None:
    texts = ["a red block left of a blue block", "there is a green block"]
    assert bleu(texts, [[text, "something else"] for text in texts]) == pytest.approx(1)
    assert bleu(texts, [["no word alike"], ["none here"]]) == 0
    assert bleu(["a red block"], [["a red block"]]) == 0  # no run of four words
    assert bleu(["", ""], [["a"], ["b"]]) == 0


def test_of_two_references_as_near_in_length_the_shorter_counts() -> None:
    """4 words against 3 or 5: no brevity penalty."""
    assert bleu(["a b c d"], [["a b c", "a b c d e"]], 1) == pytest.approx(1)
    assert bleu(["a b c d"], [["a b c d e"]], 1) == pytest.approx(math.exp(1 - 5 / 4))


def slow_bleu(captions: list[str], references: list[list[str]]) -> float:
    """Count with lists, one n-gram at a time."""
    logs, length, closest = [], 0, 0
    for n in range(1, 5):
        right = total = 0
        for caption, texts in zip(captions, references, strict=True):
            runs = [caption.split()[i : i + n] for i in range(len(caption.split()) - n + 1)]
            total += len(runs)
            for run in {tuple(run) for run in runs}:
                there = [sum(tuple(t.split()[i : i + n]) == run for i in range(len(t.split()))) for t in texts]
                right += min(runs.count(list(run)), max(there))
        logs.append(math.log(right / total))
    for caption, texts in zip(captions, references, strict=True):
        length += len(caption.split())
        closest += sorted((abs(len(t.split()) - len(caption.split())), len(t.split())) for t in texts)[0][1]
    return min(1, math.exp(1 - closest / length)) * math.exp(sum(logs) / 4)


def random_texts(seed: int, count: int = 12) -> tuple[list[str], list[list[str]]]:
    random = np.random.default_rng(seed)
    references = [
        [" ".join(random.choice(list("abcd"), random.integers(5, 12))) for _ in range(random.integers(1, 4))]
        for _ in range(count)
    ]
    return [" ".join(random.permutation(texts[0].split())) for texts in references], references


@pytest.mark.parametrize("seed", range(4))
def test_bleu_equals_a_slow_count(seed: int) -> None:
    captions, references = random_texts(seed)
    assert bleu(captions, references) == pytest.approx(slow_bleu(captions, references))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4), ("the gunman police killed", 2 / 4)],
)
def test_rouge_of_the_paper(text: str, expected: float) -> None:
    """Lin 2004, section 3.1: S1 is the reference of S2, S3 and S4, beta 1."""
    assert rouge_l([text], [["police killed the gunman"]], beta=1) == pytest.approx(expected)


def test_rouge_weighs_recall_and_takes_the_best_reference_for_each() -> None:
    """Common 2 of 2 words, and 2 of 5 in the reference; a second reference has recall 1 and precision 1/2."""
    f = (1 + 1.44) * 1 * (2 / 5) / (2 / 5 + 1.44 * 1)
    assert rouge_l(["a b"], [["a x b y z"]]) == pytest.approx(f)
    assert rouge_l(["a b"], [["a x b y z", "b"]]) == pytest.approx(1)
    assert rouge_l(["a b", "c"], [["a b"], ["d"]]) == pytest.approx(0.5)
    assert rouge_l([""], [["a b"]]) == 0


def test_the_longest_common_subsequence_equals_a_search() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        first, second = ("".join(random.choice(list("abc"), size)) for size in random.integers(0, 8, 2))
        subsequences = {tuple(chosen) for n in range(len(first) + 1) for chosen in itertools.combinations(first, n)} & {
            tuple(chosen) for n in range(len(second) + 1) for chosen in itertools.combinations(second, n)
        }
        assert longest_common(first, second) == max(map(len, subsequences))


def test_cider_of_equal_and_of_other_captions() -> None:
    """Equal to its only reference 10, to one of n references of which the others share no word 10 / n, to none 0."""
    references = [["a b c d e"], ["f g h i j", "p q r s t", "u v w x y"], ["k l m n o"]]
    assert cider_d(["a b c d e", "f g h i j", "z z z z z"], references) == pytest.approx([10, 10 / 3, 0])


def test_cider_knows_nothing_of_one_picture_and_of_what_all_have() -> None:
    assert cider_d(["a b c d"], [["a b c d"]]) == [0]
    assert cider_d(["a b c d", "a b c d"], [["a b c d"], ["a b c d"]]) == [0, 0]


def test_cider_by_hand() -> None:
    """Every word is in the references of one of two pictures, or of none: all weigh log 2."""
    references = [["a b"], ["c d"]]
    both = 1 / (math.sqrt(2) * math.sqrt(2))  # "a x" and "a b" share one of two words of equal weight
    assert cider_d(["a x", "c d"], references, order=1)[0] == pytest.approx(10 * both)
    shorter = math.exp(-1 / (2 * 6**2)) * 1 / math.sqrt(2)
    assert cider_d(["a", "c d"], references, order=1)[0] == pytest.approx(10 * shorter)
    # repeated words: 3 log 2 is cut to log 2 in the product but not in the length
    repeated = math.exp(-1 / (2 * 6**2)) * 1 / (3 * math.sqrt(2))
    assert cider_d(["a a a", "c d"], references, order=1)[0] == pytest.approx(10 * repeated)


def slow_cider(captions: list[str], references: list[list[str]]) -> list[float]:
    """Dense vectors over all n-grams that occur anywhere."""

    def runs(text: str, n: int) -> list[tuple[str, ...]]:
        return [tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)]

    every = captions + [text for texts in references for text in texts]
    found = []
    for caption, texts in zip(captions, references, strict=True):
        total = 0.0
        for text in texts:
            for n in range(1, 5):
                axis = sorted({run for other in every for run in runs(other, n)})
                having = [sum(any(run in runs(t, n) for t in others) for others in references) for run in axis]
                idf = np.log(len(references) / np.maximum(1, having))
                a, b = (np.array([runs(t, n).count(run) for run in axis]) * idf for t in (caption, text))
                lengths = np.linalg.norm(a) * np.linalg.norm(b)
                gap = len(caption.split()) - len(text.split())
                total += np.exp(-(gap**2) / 72) * (np.minimum(a, b) @ b / lengths if lengths else 0) / 4
        found.append(10 * total / len(texts))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_cider_equals_dense_vectors(seed: int) -> None:
    captions, references = random_texts(seed, 6)
    assert cider_d(captions, references) == pytest.approx(slow_cider(captions, references))


def test_words_are_runs_of_letters_and_digits() -> None:
    assert words("The Dog’s 2nd   bowl_of-water!") == ["the", "dog’s", "2nd", "bowl", "of", "water"]
    assert words("Ünïcode «déjà»") == ["ünïcode", "déjà"]
