"""Texts that no longer describe the picture, made by rule: no model, and the same text for the same seed.

basic: one opposite, or another colour. layout: one spatial relation turned round. swaps: the same words in another
place, two noun phrases or two attributes exchanged. Phrases are only exchanged when they differ enough, so that the
meaning changes (DCI's guard for its control negatives): neither contains the other, and their edit distance over the
length of the shorter one is above 0.5.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from granary.curation.dense.texts import ALSO
from granary.curation.dense.words import ATTRIBUTES, COLOURS, DETERMINERS, FRAME, OPPOSITES, PHRASE_ENDS, RELATIONS

KINDS = ("basic", "layout", "swaps")
VERSION = 1
MOST_WORDS = 400  # of a text that is looked through
MOST_SPANS = 10  # that are exchanged: their pairs grow with the square
LONGEST_PHRASE = 5
WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
FIXED = re.compile(rf"{re.escape(ALSO)}|This is an image of\b")  # of descriptions, not about what is seen
PLACE_IN_PICTURE = re.compile(
    r"\s+(?:the|its|his|her|their|either|each|both)\s+(?:\w+\s+)?(?:left|right|top|bottom|sides?)\b", re.IGNORECASE
)
ARTICLE = re.compile(r"\b([Aa]n?)(\s+)([^\W\d_][\w-]*)")
COLOUR, ATTRIBUTE = frozenset(COLOURS), frozenset(ATTRIBUTES)
Edit = tuple[int, int, str]  # from, to, what stands there instead
Named = tuple[str, list[Edit]]  # a rule and its edits


@dataclass(frozen=True)
class Rule:
    """A text made by a rule.

    Args:
        name: of the rule, with its version.
    """

    text: str
    name: str


def negatives(text: str, kind: str, seed: int) -> Iterator[Rule]:
    """Yield the negatives of a kind that the rules can make of a text, in an order that the seed decides.

    Args:
        text: describes a picture, in English; others give nothing.
        kind: basic, layout or swaps.
        seed: decides the order, and which colour stands in for which.
    """
    rng, parsed = random.Random(seed), looked(text)
    named = list(RULES[kind](parsed, rng))
    seen = {_folded(text)}
    while named:
        name, edits = named.pop(rng.randrange(len(named)))
        if len(edits) == 2 and not differ(edits[0][2], edits[1][2]):
            continue
        changed = _edited(parsed, edits)
        if (folded := _folded(changed)) not in seen:
            seen.add(folded)
            yield Rule(changed, f"{name}/{VERSION}")


class Looked:
    """A text with its words: bounds and lower case of each of the first MOST_WORDS outside of fixed sentences."""

    def __init__(self, text: str) -> None:
        self.text = text
        matches = itertools.islice(WORD.finditer(text), MOST_WORDS)
        self.words = [(match.start(), match.end(), match[0].lower()) for match in matches]
        for begin, end in [match.span() for match in FIXED.finditer(text)]:
            self.words = [word for word in self.words if not begin <= word[0] < end]

    @functools.cached_property
    def articles(self) -> set[str]:
        """The articles with the words behind them, in lower case."""
        return {match[0].lower() for match in ARTICLE.finditer(self.text)}

    def of(self, listed: frozenset[str] | dict[str, str]) -> list[tuple[int, int, str]]:
        """Return the words that are in a list."""
        return [word for word in self.words if word[2] in listed]


looked = functools.lru_cache(maxsize=8)(Looked)  # each text is asked for every kind


def basic(parsed: Looked, rng: random.Random) -> Iterator[Named]:
    """Yield the exchange of each word for its opposite, and of each colour for one that the text does not name."""
    words = {word for _, _, word in parsed.words}
    for start, stop, word in parsed.of(OPPOSITES):
        if OPPOSITES[word] not in words:
            yield "opposite", [(start, stop, OPPOSITES[word])]
    others = [colour for colour in COLOURS if colour not in words]
    for start, stop, _ in parsed.of(COLOUR) if others else []:
        yield "colour", [(start, stop, rng.choice(others))]


def layout(parsed: Looked, rng: random.Random) -> Iterator[Named]:
    """Yield each spatial relation turned round; "on the left side" is no relation of "on"."""
    end = 0
    for start, stop, word in parsed.words:
        for relation in STARTS.get(word, ()):
            last = start + len(relation)
            if start < end or parsed.text[start:last].lower() != relation or parsed.text[last : last + 1].isalpha():
                continue
            if relation != "on" or not PLACE_IN_PICTURE.match(parsed.text, stop):
                yield "relation", [(start, last, RELATIONS[relation])]
            end = last
            break


STARTS = {
    word: sorted((phrase for phrase in RELATIONS if phrase.split()[0] == word), key=len, reverse=True)
    for word in {relation.split()[0] for relation in RELATIONS}
}  # of each first word, the longest relation first


def swaps(parsed: Looked, rng: random.Random) -> Iterator[Named]:
    """Yield the exchange of two noun phrases, and of two attributes."""
    text = parsed.text
    attributes = [(start, stop) for start, stop, _ in parsed.of(ATTRIBUTE)]
    for name, spans in (("noun-phrases", phrases(parsed)), ("adjectives", iter(attributes))):
        for (a, b), (c, d) in itertools.combinations(itertools.islice(spans, MOST_SPANS), 2):
            if b <= c:
                yield name, [(a, b, text[c:d]), (c, d, text[a:b])]


RULES = {"basic": basic, "layout": layout, "swaps": swaps}


def phrases(parsed: Looked) -> Iterator[tuple[int, int]]:
    """Yield the bounds of noun phrases: a determiner and the words up to a mark or a word that ends a phrase."""
    for place, (start, end, word) in enumerate(parsed.words):
        if word not in DETERMINERS:
            continue
        last, begin = "", end
        for left, right, following in parsed.words[place + 1 : place + 1 + LONGEST_PHRASE]:
            if following in PHRASE_ENDS or parsed.text[end:left].strip(" "):
                break
            end, last = right, following
        if end > begin and last not in FRAME:
            yield start, end


def differ(left: str, right: str) -> bool:
    """Say whether two phrases differ enough to be exchanged: DCI's guard, in any case and without determiners."""
    left, right = _bare(left), _bare(right)
    shorter = min(len(left), len(right))
    if not shorter or left in right or right in left:
        return False
    return edit_distance(left, right) / shorter > 0.5


def _bare(phrase: str) -> str:
    first, _, rest = phrase.lower().partition(" ")
    return rest if rest and first in DETERMINERS else phrase.lower()


def edit_distance(left: str, right: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and replacements of single characters."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _edited(parsed: Looked, edits: list[Edit]) -> str:
    """Return the text with parts exchanged; what comes to stand at the start of a sentence takes over its capital."""
    text, parts, place = parsed.text, [], 0
    for start, stop, instead in edits:
        parts += [text[place:start], _cased(text, start, stop, instead)]
        place = stop
    return _articles("".join([*parts, text[place:]]), parsed.articles)


def _cased(text: str, start: int, stop: int, instead: str) -> str:
    old = text[start:stop]
    if old.isupper() and len(old) > 1:
        return instead.upper()
    before = text[:start].rstrip()
    if not before or before[-1] in ".!?\n":
        return instead[:1].upper() + instead[1:]
    return instead if old[:1].isupper() else instead[:1].lower() + instead[1:]


def _articles(changed: str, kept: set[str]) -> str:
    """Put a and an right before words that came to stand behind them; articles of the original stay as they were."""

    def right(match: re.Match[str]) -> str:
        if match[0].lower() in kept:
            return match[0]
        article = "an" if match[3][0].lower() in "aeiou" else "a"
        return (article if match[1].islower() else article.capitalize()) + match[2] + match[3]

    return ARTICLE.sub(right, changed)
