"""Balance captions over metadata entries, as MetaCLIP does (Xu et al. 2023, arXiv 2309.16671, section 3, algorithm 1).

An entry matches a caption that holds it as whole words. Of the images that match an entry, t are kept in expectation:
each by a draw of its own with the probability min(1, t / count). An image with several entries stays when one of its
draws says so, so it is kept with the probability 1 - prod (1 - p). An image without an entry goes.

What is a word is as the authors' code has it: a caption and every mark of , . ; : ? ! ` get a space at both ends,
tabs and line ends become spaces, and an entry matches where it stands between two spaces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from granary.curation.store.sampling import priority

MARKS = str.maketrans({**{mark: f" {mark} " for mark in ",.;:?!`"}, **dict.fromkeys("\t\n\r", " ")})
PURPOSE = "caption balance"


def spaced(caption: str, fold: bool = False) -> str:
    """Return a caption with a space around it and around every mark.

    >>> spaced("A cat, a dog.")
    ' A cat ,  a dog .  '

    Args:
        caption: any text.
        fold: whether capitals become small letters.
    """
    return f" {caption.casefold() if fold else caption} ".translate(MARKS)


def words_of(captions: Iterable[str], fold: bool = False) -> set[str]:
    """Return the words of captions that hold a letter or a digit, each once."""
    tokens = {token for caption in captions for token in spaced(caption, fold).split(" ")}
    return {token for token in tokens if any(map(str.isalnum, token))}


@dataclass(frozen=True)
class Matcher:
    """Finds entries in captions, in time that does not grow with their number.

    Args:
        numbers: of each entry.
        fold: whether capitals and small letters are the same.
        lengths: for each first word of an entry, of how many words entries that begin so are.
    """

    numbers: dict[str, int]
    fold: bool
    lengths: dict[str, tuple[int, ...]] = field(repr=False)

    @staticmethod
    def of(entries: Sequence[str], fold: bool = False) -> Matcher:
        """Return what finds entries; of two that are the same the first counts."""
        numbers: dict[str, int] = {}
        lengths = defaultdict[str, set[int]](set)
        for number, entry in enumerate(entries):
            text = entry.casefold() if fold else entry
            numbers.setdefault(text, number)
            tokens = text.split(" ")
            lengths[tokens[0]].add(len(tokens))
        return Matcher(numbers, fold, {first: tuple(sorted(some)) for first, some in lengths.items()})

    def found(self, captions: Iterable[str]) -> list[int]:
        """Return the numbers of the entries that some captions of an image hold, ascending, each once."""
        return sorted({number for caption in captions for number in self._in(caption)})

    def _in(self, caption: str) -> Iterable[int]:
        tokens = spaced(caption, self.fold).split(" ")
        for start, token in enumerate(tokens):
            for length in self.lengths.get(token, ()):
                number = self.numbers.get(" ".join(tokens[start : start + length]))
                if number is not None:
                    yield number


def probabilities(counts: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """Return with which probability an image is kept for each entry: min(1, most / count).

    Args:
        counts: (e,) int64, images that match each entry.
        most: images that an entry keeps in expectation, t in the paper.

    Returns:
        (e,) float64; 1 for an entry without images.
    """
    return most / np.maximum(counts, most)


def draws(seed: int, ids: Sequence[str], entries: Sequence[str]) -> NDArray[np.float64]:
    """Return a number of [0, 1) for each pair of an image and an entry, from a hash of seed, id and entry alone.

    Args:
        seed: of the run.
        ids: (n,) of the images.
        entries: (n,) their text.

    Returns:
        (n,) float64.
    """
    if not len(ids):
        return np.empty(0)
    names = [f"{name}/{entry}" for name, entry in zip(ids, entries, strict=True)]
    return (priority(seed, np.array(names, dtype=object), PURPOSE) >> np.uint64(11)) / 2.0**53
