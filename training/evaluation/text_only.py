"""Models that see no picture: how likely a text is by the words before each, and what is usually answered.

Whoever scores well with one of these on a benchmark has measured its texts.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from granary.training.evaluation.answers import normalised
from granary.training.evaluation.caption_scores import words
from granary.training.evaluation.questions import Question

EDGE = ""  # stands before the first word and after the last


class Bigrams:
    """Probabilities of words after words, mixed with those of words alone (Witten and Bell 1991).

    Args:
        texts: that are learned from.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.after = defaultdict[str, Counter[str]](Counter)
        self.alone = Counter[str]()
        for text in texts:
            tokens = [EDGE, *words(text), EDGE]
            self.alone.update(tokens[1:])
            for before, word in itertools.pairwise(tokens):
                self.after[before][word] += 1

    def score(self, text: str) -> float:
        """Return the mean log probability of the words of a text and its end."""
        tokens = [EDGE, *words(text), EDGE]
        logs = [math.log(self.probability(*pair)) for pair in itertools.pairwise(tokens)]
        return sum(logs) / len(logs)

    def probability(self, before: str, word: str) -> float:
        """Return the probability of a word after another; those of all known words and one unknown sum to one."""
        seen = self.after.get(before, Counter[str]())
        total, kinds = seen.total(), len(seen)
        one_word = (self.alone[word] + 1) / (self.alone.total() + len(self.alone) + 1)
        return (seen[word] + kinds * one_word) / (total + kinds) if total else one_word


def usual_answers(learned: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """Return the most frequent answer to the same question, else to those of its kind, else to all; "" of none at all.

    Args:
        learned: questions with answers that are known.
        asked: others.
    """
    counts = defaultdict[tuple[str, str], Counter[str]](Counter)
    for question in learned:
        for level in _levels(question):
            counts[level].update(map(normalised, question.people))
    return [next((_first(counts[level]) for level in _levels(question) if counts.get(level)), "") for question in asked]


def _levels(question: Question) -> list[tuple[str, str]]:
    return [("question", " ".join(words(question.text))), ("kind", question.kind), ("all", "")]


def _first(counted: Counter[str]) -> str:
    return min(counted, key=lambda answer: (-counted[answer], answer))
