"""Whether an answer is right, as VQAv2 counts it (Antol et al. 2015, arXiv 1505.00468; visualqa.org/evaluation)."""

from __future__ import annotations

import re
from collections.abc import Sequence

FULL = 3  # people who gave an answer make it wholly right
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
ARTICLES = ("a", "an", "the")
NOT = (
    *("ain", "aren", "can", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn", "mightn", "mustn"),
    *("needn", "shouldn", "wasn", "weren", "won", "wouldn"),
)
OTHERS = (
    *("he's", "how'd", "how's", "i'm", "i've", "it'd", "it'll", "let's", "she's", "o'clock", "somebody's", "someone's"),
    *("that's", "there's", "they'd", "they'll", "they're", "they've", "we've", "what's", "where's", "who'd", "who'll"),
    *("who's", "who've", "y'all", "you'd", "you'll", "you're", "you've"),
)
CONTRACTIONS = {f"{stem}t": f"{stem}'t" for stem in NOT} | {word.replace("'", ""): word for word in OTHERS}
COMMA = re.compile(r"(?<=\d),(?=\d)")
STOP = re.compile(r"\.(?!\d)")
PUNCTUATION = re.compile(r"[^\w\s':.]|_")


def normalised(answer: str) -> str:
    """Return an answer as it is compared.

    Lower case; no commas inside numbers, no full stops but decimal points, a space for other punctuation but
    apostrophes and colons; number words up to ten as digits, no articles, the apostrophe of contractions put back.

    >>> normalised("The T-shirt, two dogs; dont ask: 1,000 at 2:50 p.m.")
    "t shirt 2 dogs don't ask: 1000 at 2:50 pm"
    """
    text = STOP.sub("", COMMA.sub("", answer.lower().replace("’", "'")))
    kept = [DIGITS.get(word, word) for word in PUNCTUATION.sub(" ", text).split() if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Return how right an answer is, 0 .. 1: the mean of min(1, equal answers / 3) over all people but one.

    Of fewer than four people, who cannot agree so, one equal answer makes it right: data with one answer count exact
    matches.

    Args:
        answer: of the model.
        people: their answers, ten in VQAv2.

    Raises:
        ValueError: there are no people.
    """
    if not people:
        raise ValueError("no answers to compare with")
    same = [normalised(other) == normalised(answer) for other in people]
    if len(people) <= FULL:
        return float(any(same))
    equal = sum(same)
    return sum(min(1.0, (equal - one) / FULL) for one in same) / len(people)
