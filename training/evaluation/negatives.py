"""Captions made wrong by moving their own words: what a model that reads a bag of words cannot tell apart.

After ARO (Yuksekgonul et al. 2022, arXiv 2210.01936) and SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610), without a
parser: words are told apart by lists. A text is kept but for the words that move; punctuation stays in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from granary.curation.store.sampling import hashed

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
COLOURS = (
    *(
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "violet",
        "pink",
        "brown",
        "black",
        "white",
        "grey",
        "gray",
    ),
    *("cyan", "magenta", "turquoise", "beige", "gold", "silver"),
)
ATTRIBUTES = (
    *(*COLOURS, "big", "small", "large", "little", "tall", "short", "long", "wide", "narrow", "round", "square", "old"),
    *("young", "new", "wooden", "metal", "plastic", "striped", "spotted", "plain", "smooth", "rough", "shiny", "dark"),
    *("light", "wet", "dry", "empty", "full", "open", "closed"),
)
OPPOSITES = {
    "left": "right",
    "above": "below",
    "over": "under",
    "before": "behind",
    "inside": "outside",
    "top": "bottom",
}
BOTH_WAYS = OPPOSITES | {other: one for one, other in OPPOSITES.items()}
Change = Callable[[Sequence[str], np.random.Generator], Sequence[str]]


def shuffled(words: Sequence[str], random: np.random.Generator) -> Sequence[str]:
    """Put all words in another order."""
    return [words[n] for n in random.permutation(len(words))]


def shuffled_trigrams(words: Sequence[str], random: np.random.Generator) -> Sequence[str]:
    """Put runs of three words in another order, the words inside them as they are."""
    runs = [words[n : n + 3] for n in range(0, len(words), 3)]
    return [word for n in random.permutation(len(runs)) for word in runs[n]]


def shuffled_within_trigrams(words: Sequence[str], random: np.random.Generator) -> Sequence[str]:
    """Put the words inside runs of three in another order, the runs as they are."""
    runs = [words[n : n + 3] for n in range(0, len(words), 3)]
    return [run[n] for run in runs for n in random.permutation(len(run))]


def exchanged_attributes(words: Sequence[str], random: np.random.Generator) -> Sequence[str]:
    """Exchange two different attributes, by `ATTRIBUTES`; words without two of them stay as they are."""
    places = [n for n, word in enumerate(words) if word.casefold() in ATTRIBUTES]
    pairs = [(i, j) for i in places for j in places if i < j and words[i].casefold() != words[j].casefold()]
    if not pairs:
        return words
    one, other = pairs[int(random.integers(len(pairs)))]
    changed = list(words)
    changed[one], changed[other] = _cased(words[other], words[one]), _cased(words[one], words[other])
    return changed


def opposite_relations(words: Sequence[str], random: np.random.Generator) -> Sequence[str]:
    """Turn all relations round: left and right, above and below, see `OPPOSITES`."""
    return [_cased(BOTH_WAYS.get(word.casefold(), word), word) for word in words]


def _cased(word: str, like: str) -> str:
    """Return a word with a capital where another has one."""
    return word[:1].upper() + word[1:] if like[:1].isupper() else word[:1].lower() + word[1:]


CHANGES: Mapping[str, Change] = {
    "order": shuffled,
    "trigrams": shuffled_trigrams,
    "within_trigrams": shuffled_within_trigrams,
    "attributes": exchanged_attributes,
    "relations": opposite_relations,
}
TRIES = 10  # at an order that is another one


def negative(text: str, kind: str, key: str, true: Sequence[str] = ()) -> str | None:
    """Return a text made wrong in one way; None where it has nothing to change.

    Args:
        text: a caption.
        kind: one of `CHANGES`.
        key: decides, with text and kind, what is drawn.
        true: other captions of the picture: what equals one, up to capitals, is not wrong.
    """
    words, pieces = WORD.findall(text), WORD.split(text)
    right = {other.casefold() for other in (text, *true)}
    random = np.random.default_rng(hashed(f"{key}/{kind}/{text}"))
    for _ in range(TRIES):
        changed = CHANGES[kind](words, random)
        wrong = "".join(piece + word for piece, word in zip(pieces, [*changed, ""], strict=True))
        if wrong.casefold() not in right:
            return wrong
    return None
