"""Balance of captions against the definition: matching by search in the text, counts and draws one by one."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest

from granary.curation.selection.captions import Matcher, draws, probabilities, spaced, words_of

WORDS = [
    "cat",
    "Cat",
    "hot",
    "dog",
    "hot dog",
    "a",
    "St",
    "photo of",
    "of",
    "x",
    "cat dog",
    "don't",
    "-",
    "New York City",
]


def by_search(caption: str, entries: list[str]) -> list[int]:
    """Return the entries that a caption holds between spaces, each looked for in the whole text."""
    for mark in ",.;:?!`":
        caption = caption.replace(mark, f" {mark} ")
    text = " " + caption.replace("\t", " ").replace("\n", " ").replace("\r", " ") + " "
    return [number for number, entry in enumerate(entries) if f" {entry} " in text]


def captions(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    parts = [*WORDS, "concatenate", "dogs", ",", ".", "!", "", "\t", "\n", "New", "York", "City", "cat,dog", "hot  dog"]
    return [rng.choice(("", " ")).join(rng.choices(parts, k=rng.randint(0, 12))) for _ in range(count)] + [
        " ".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(count)
    ]


def test_matches_are_those_of_a_search_in_the_text() -> None:
    matcher, found = Matcher.of(WORDS), 0
    for caption in captions(3000):
        expected = by_search(caption, WORDS)
        assert matcher.found([caption]) == expected
        found += len(expected)
    assert found > 5000


@pytest.mark.parametrize(
    ("caption", "entries"),
    [
        ("a cat, a dog.", {"a", "cat", "dog"}),
        ("concatenated hotdogs", set()),
        ("hot dog", {"hot", "dog", "hot dog"}),
        ("hot, dog", {"hot", "dog"}),
        ("A CAT", set()),
        ("", set()),
    ],
)
def test_an_entry_is_found_as_whole_words(caption: str, entries: set[str]) -> None:
    assert {WORDS[number] for number in Matcher.of(WORDS).found([caption])} == entries


def test_capitals_may_count_or_not_and_an_image_counts_once_for_an_entry() -> None:
    assert Matcher.of(["cat", "DOG"], fold=True).found(["A CAT.", "a cat and a dog"]) == [0, 1]
    assert Matcher.of(["cat"], fold=False).found(["A CAT."]) == []
    assert words_of(["A cat, a CAT!", "-- 3"], fold=True) == {"a", "cat", "3"}
    assert words_of(["A cat, a CAT!"]) == {"A", "a", "cat", "CAT"}
    assert spaced("x").startswith(" ")


def test_probabilities_are_those_of_the_paper() -> None:
    counts = np.array([10, 20_000, 40_000, 200_000, 0])
    assert probabilities(counts, 20_000).tolist() == [1.0, 1.0, 0.5, 0.1, 1.0]


def test_an_image_with_two_entries_is_kept_by_either_draw() -> None:
    """Entries with 200,000 and 40,000 images at t = 20,000: 1 - 0.9 * 0.5 = 0.55."""
    ids = [f"{number:032x}" for number in range(40_000)]
    odds = probabilities(np.array([200_000, 40_000]), 20_000)
    kept = (draws(0, ids, ["common"] * len(ids)) < odds[0]) | (draws(0, ids, ["rare"] * len(ids)) < odds[1])
    assert abs(kept.mean() - 0.55) < 4 * math.sqrt(0.55 * 0.45 / len(ids))
    single = (draws(0, ids, ["common"] * len(ids)) < odds[0]).mean()
    assert abs(single - 0.1) < 4 * math.sqrt(0.1 * 0.9 / len(ids))


def test_a_draw_is_a_hash_of_seed_image_and_entry() -> None:
    ids, entries = ["a", "b", "a"], ["x", "x", "y"]
    numbers = draws(3, ids, entries)
    key = hashlib.blake2b(b"3/caption balance", digest_size=32).digest()
    expected = [
        (int.from_bytes(hashlib.blake2b(f"{one}/{entry}".encode(), digest_size=8, key=key).digest(), "little") >> 11)
        / 2**53
        for one, entry in zip(ids, entries, strict=True)
    ]
    assert numbers.tolist() == expected
    assert draws(3, ids[::-1], entries[::-1]).tolist() == expected[::-1]
    assert len({*numbers, *draws(4, ids, entries)}) == 6
    assert draws(0, [], []).tolist() == []
