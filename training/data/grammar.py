"""Which tokens may follow which in answers with coordinates: what a decoder goes by that may not leave their form.

text    words*
box     nothing | <b_st> box (<b_sep> box)* <b_ed>            box: 4 bins
mask    nothing | <m_st> mask (<m_sep> mask)* <m_ed>          mask: 2 n bins
group   (<i_K> mask's)*                                       K rising, at most the number of pictures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from granary.training.data.bins import LETTERS, Kind, picture_token, vocabulary
from granary.training.data.instructions import Form


class _Marks(NamedTuple):
    """The tokens around and between items, and the coordinates of an item."""

    start: int
    stop: int
    between: int
    numbers: int


@dataclass(frozen=True)
class Grammar:
    """The answers of a vocabulary.

    Args:
        numbers: token -> its number, of all tokens of `bins.vocabulary` and of `picture_token`.
        size: of the vocabulary.
        end: number of the token that ends an answer.
        others: further numbers that are no words.
        bins: of a coordinate.
        points: of a mask.
        items: boxes of an answer, or masks of a picture, at most.
        pictures: at most.
    """

    numbers: Mapping[str, int]
    size: int
    end: int
    others: frozenset[int]
    bins: int
    points: int
    items: int
    pictures: int

    @cached_property
    def coordinates(self) -> list[int]:
        """Numbers of the bins."""
        return [self.numbers[f"<bin_{number}>"] for number in range(self.bins)]

    @cached_property
    def places(self) -> list[int]:
        """Numbers of the tokens of pictures."""
        return [self.numbers[picture_token(number)] for number in range(self.pictures)]

    @cached_property
    def words(self) -> list[int]:
        """Numbers of all that texts are made of, and the end."""
        special = {*map(self.numbers.__getitem__, vocabulary(self.bins)), *self.places, *self.others} - {self.end}
        return [number for number in range(self.size) if number not in special]

    def _marks(self, kind: Kind) -> _Marks:
        letter, count = LETTERS[kind], {"box": 4, "point": 2, "mask": 2 * self.points}[kind]
        start, stop, between = (self.numbers[f"<{letter}_{end}>"] for end in ("st", "ed", "sep"))
        return _Marks(start, stop, between, count)

    def longest(self, form: Form, text: int) -> int:
        """Return how many tokens an answer has at most, its end among them; of a text as many as are given."""
        if form == "text":
            return text
        marks = self._marks("box" if form == "box" else "mask")
        items = self.items * (marks.numbers + 1) + 1
        return 1 + (self.pictures * (items + 1) if form == "group" else items)

    def allowed(self, form: Form, said: Sequence[int], pictures: int = 1) -> list[int]:
        """Return the tokens that may come next, one or more.

        Args:
            form: of the answer.
            said: its tokens so far, each of them allowed when it came.
            pictures: that are shown.
        """
        if form == "text":
            return self.words
        marks = self._marks("box" if form == "box" else "mask")
        if form != "group":
            return self._in_items(said, marks) if said else [self.end, marks.start]
        shown = self.places[:pictures]
        last = next((place for place in range(len(said) - 1, -1, -1) if said[place] in shown), None)
        if last is None:
            return [self.end, *shown]
        inside = said[last + 1 :]
        if not inside:
            return [marks.start]
        later = shown[shown.index(said[last]) + 1 :]
        return [self.end, *later] if inside[-1] == marks.stop else self._in_items(inside, marks)

    def _in_items(self, said: Sequence[int], marks: _Marks) -> list[int]:
        """Return what may follow the beginning of a list of items."""
        if said[-1] == marks.stop:
            return [self.end]
        places = [place for place, token in enumerate(said) if token in (marks.start, marks.between)]
        if len(said) - places[-1] - 1 < marks.numbers:
            return self.coordinates
        return [marks.stop, marks.between] if len(places) < self.items else [marks.stop]
