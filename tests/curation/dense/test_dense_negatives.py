"""Negatives by rule: they change the meaning, keep the words they promise to keep, and obey DCI's guard."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter as Bag

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED

from granary.curation.dense.negatives import KINDS, Looked, differ, edit_distance, negatives, phrases
from granary.curation.dense.words import ATTRIBUTES, DETERMINERS, OPPOSITES, RELATIONS

TEXT = "A red barn stands to the left of a small pond. An old man in a white shirt opens the wooden door."


def made(text: str, kind: str, seed: int = 0) -> set[str]:
    return {rule.text for rule in negatives(text, kind, seed)}


def words(text: str) -> Bag[str]:
    return Bag(text.lower().replace(".", " ").replace(",", " ").split())


def test_swaps_are_the_same_words_in_another_order() -> None:
    found = made(TEXT, "swaps")
    assert "A small barn stands to the left of a red pond. An old man in a white shirt opens the wooden door." in found
    assert "An old man stands to the left of a small pond. A red barn in a white shirt opens the wooden door." in found
    articles = {"a", "an"}
    for text in found:
        changed, original = words(text), words(TEXT)
        assert {word: n for word, n in changed.items() if word not in articles} == {
            word: n for word, n in original.items() if word not in articles
        }
        assert sum(changed[word] for word in articles) == sum(original[word] for word in articles)


def test_opposites_colours_and_relations_change_one_place() -> None:
    assert "A red barn stands to the right of a small pond. An old man in a white shirt opens the wooden door." in made(
        TEXT, "layout"
    )
    basic = made(TEXT, "basic")
    assert "A red barn stands to the left of a big pond. An old man in a white shirt opens the wooden door." in basic
    assert any(
        text.startswith("A blue barn") for text in set().union(*(made(TEXT, "basic", seed) for seed in range(40)))
    )
    for text in basic | made(TEXT, "layout"):
        assert len(words(TEXT) - words(text)) in (1, 2)


def test_longer_relations_come_before_their_parts() -> None:
    assert made("A dog sits in front of a car.", "layout") == {"A dog sits behind a car."}
    assert made("A cup is on top of a shelf.", "layout") == {"A cup is underneath a shelf."}
    assert made("A lamp on the left side.", "layout") == {"A lamp on the right side."}
    assert made("Onward, an underdog offers tops.", "layout") == set()


def test_articles_and_capitals_are_right() -> None:
    assert made("An old barn. A dog.", "basic") >= {"A new barn. A dog."}
    assert "An old pond by a red barn." in made("A red pond by an old barn.", "swaps")
    assert "The tree covers a hill." in made("A hill covers the tree.", "swaps")


def test_nothing_is_made_of_what_no_rule_knows() -> None:
    for kind in KINDS:
        assert made("", kind) == set()
        assert made("باب أبيض بجانب بركة", kind) == set()
        assert made("Bus.", kind) == set()


def test_fixed_sentences_are_left_alone() -> None:
    text = "This is an image of barn. A red barn.\nThe following can also be seen in the image:\ndoor: A white door."
    for kind in KINDS:
        for changed in made(text, kind):
            assert changed.startswith("This is an image of ")
            assert "\nThe following can also be seen in the image:\n" in changed


def plain_distance(left: str, right: str) -> int:
    if not left or not right:
        return len(left) + len(right)
    return min(
        plain_distance(left[1:], right) + 1,
        plain_distance(left, right[1:]) + 1,
        plain_distance(left[1:], right[1:]) + (left[0] != right[0]),
    )


@settings(max_examples=60, deadline=None)
@given(st.text("ab", max_size=5), st.text("abc", max_size=5))
def test_edit_distance(left: str, right: str) -> None:
    assert edit_distance(left, right) == plain_distance(left, right)


def test_the_guard() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert not differ("the barn", "a red barn")  # one contains the other
    assert not differ("walls", "halls")  # 1 / 5
    assert not differ("abcd", "abxy")  # 2 / 4 is not above 0.5
    assert differ("abcd", "axyz")  # 3 / 4
    assert differ("the dog", "the cat")


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides(kind: str) -> None:
    first = [rule.text for rule in negatives(TEXT, kind, 7)]
    assert first == [rule.text for rule in negatives(TEXT, kind, 7)]
    assert len({tuple(rule.text for rule in negatives(TEXT, kind, seed)) for seed in range(12)}) > 1 or len(first) == 1


def test_lists_have_no_word_twice_where_it_matters() -> None:
    assert len(set(ATTRIBUTES)) == len(ATTRIBUTES)
    assert all(OPPOSITES[word] != word for word in OPPOSITES)
    assert all(RELATIONS[RELATIONS[word]] for word in RELATIONS)


def test_phrases_of_real_descriptions_begin_with_a_determiner_and_most_texts_get_every_kind() -> None:
    path = SHARED / "dense_descriptions_dev.jsonl.gz"
    if not path.exists():
        pytest.skip("shared/data is not beside the checkout")
    texts = [json.loads(line)["description"] for line in gzip.decompress(path.read_bytes()).splitlines()][:120]
    without = Bag[str]()
    for text in texts:
        for start, stop in phrases(Looked(text)):
            first, *rest = text[start:stop].lower().split()
            assert first in DETERMINERS
            assert 1 <= len(rest) <= 5
        for kind in KINDS:
            found = list(itertools.islice(negatives(text, kind, 1), 3))
            without[kind] += not found
            assert all(" ".join(rule.text.lower().split()) != " ".join(text.lower().split()) for rule in found)
    assert max(without.values()) <= 3, without
