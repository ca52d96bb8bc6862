"""How captions agree with references: BLEU, ROUGE-L and CIDEr-D.

All three compare the same words, see `words`: figures of programs that split texts in other ways are not the same.
Captions and references are lists of one length; a caption has one reference or more.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

ORDER = 4  # the longest n-grams of BLEU and CIDEr
BETA = 1.2  # weight of recall in ROUGE-L, of the captions of COCO (Chen et al. 2015, arXiv 1504.00325)
SIGMA = 6.0  # words, of CIDEr-D's penalty for another length
Vector = Mapping[tuple[str, ...], float]


def words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, with apostrophes inside; no punctuation.

    >>> words("A dog's ball, 2 cats.")
    ['a', "dog's", 'ball', '2', 'cats']
    """
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.casefold())


def grams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """Return how often each run of n words occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]], order: int = ORDER) -> float:
    """Return BLEU of a corpus in 0 .. 1 (Papineni et al. 2002): counts are summed over all captions, none smoothed.

    Args:
        captions: n texts.
        references: those of each caption; the nearest in length, the shorter of two, decides the brevity penalty.
        order: the longest n-grams.
    """
    right, total = np.zeros(order), np.zeros(order)
    length = wanted = 0
    for caption, texts in zip(captions, references, strict=True):
        candidate, others = words(caption), [words(text) for text in texts]
        length += len(candidate)
        wanted += min((len(other) for other in others), key=lambda size: (abs(size - len(candidate)), size))
        for n in range(1, order + 1):
            matched, count = clipped_matches(candidate, others, n)
            right[n - 1] += matched
            total[n - 1] += count
    if not right.all():
        return 0.0
    brevity = min(1.0, math.exp(1 - wanted / length))
    return brevity * math.exp(float(np.log(right / total).mean()))


def clipped_matches(candidate: Sequence[str], references: Sequence[Sequence[str]], n: int) -> tuple[int, int]:
    """Return how many n-grams of a text occur in references, each as often as where most, and how many it has."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= grams(reference, n)
    own = grams(candidate, n)
    return (own & most).total(), own.total()


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]], beta: float = BETA) -> float:
    """Return the mean ROUGE-L of captions in 0 .. 1 (Lin 2004): the F-measure of the longest common subsequence.

    Args:
        captions: n texts.
        references: those of each caption; the best recall and the best precision over them count.
        beta: how many times as much recall counts as precision.
    """
    both = zip(captions, references, strict=True)
    scores = [_rouge_l(words(caption), [words(text) for text in texts], beta) for caption, texts in both]
    return sum(scores) / len(scores)


def _rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]], beta: float) -> float:
    common = [longest_common(candidate, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(count / max(1, len(reference)) for count, reference in zip(common, references, strict=True))
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        corner = 0
        for place, other in enumerate(second, 1):
            corner, row[place] = row[place], corner + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]], order: int = ORDER) -> list[float]:
    """Return CIDEr-D of each caption in 0 .. 10 (Vedantam et al. 2015, arXiv 1411.5726); that of a corpus is the mean.

    How rare an n-gram is, is counted over the references given here: one in the references of every picture weighs
    nothing, and of one picture alone all scores are 0.

    Args:
        captions: n texts.
        references: those of each caption.
        order: the longest n-grams.
    """
    tokens = [[words(text) for text in texts] for texts in references]
    rare = [_rarity(tokens, n) for n in range(1, order + 1)]
    return [_cider_d(words(caption), texts, rare) for caption, texts in zip(captions, tokens, strict=True)]


def _rarity(references: Sequence[Sequence[Sequence[str]]], n: int) -> tuple[Vector, float]:
    """Return log(pictures / those whose references have it) of each n-gram, and of those that none has."""
    having: Counter[tuple[str, ...]] = Counter()
    for texts in references:
        having.update({gram for text in texts for gram in grams(text, n)})
    pictures = math.log(len(references))
    return {gram: pictures - math.log(count) for gram, count in having.items()}, pictures


def _cider_d(
    candidate: Sequence[str], references: Sequence[Sequence[str]], rare: Sequence[tuple[Vector, float]]
) -> float:
    scores = []
    for reference in references:
        penalty = math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * SIGMA**2))
        cosines = [
            _clipped_cosine(_weighed(candidate, n, *weights), _weighed(reference, n, *weights))
            for n, weights in enumerate(rare, 1)
        ]
        scores.append(penalty * sum(cosines) / len(cosines))
    return 10 * sum(scores) / len(scores)


def _weighed(tokens: Sequence[str], n: int, rarity: Vector, unseen: float) -> Vector:
    return {gram: count * rarity.get(gram, unseen) for gram, count in grams(tokens, n).items()}


def _clipped_cosine(candidate: Vector, reference: Vector) -> float:
    """Return the cosine of two vectors, the candidate's entries cut to the reference's."""
    lengths = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    product = sum(
        min(value, reference[gram]) * reference[gram] for gram, value in candidate.items() if gram in reference
    )
    return product / lengths if lengths else 0.0
