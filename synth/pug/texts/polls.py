"""Polls: is an object in the picture? Objects that are there against as many that are not.

POPE (Li et al. 2023, arXiv 2305.10355), section 4: yes and no in equal numbers, and absent objects drawn at random, the
most frequent of the data set first (popular), or those first that stand most often beside an object that is there
(adversarial). Where frequencies are equal, as in every full grid, a hash of seed and row decides.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from granary.curation.store.language import PollRow
from granary.curation.store.sampling import hashed
from granary.synth.pug.texts.facts import with_article
from granary.synth.pug.texts.options import Polls, Sampling


@dataclasses.dataclass(frozen=True)
class Commonness:
    """How often objects are in the pictures of a plan.

    Args:
        pictures: for each object how many pictures it is in.
        together: for each two objects, the smaller word first, how many pictures both are in.
    """

    pictures: Mapping[str, int]
    together: Mapping[tuple[str, str], int]

    @staticmethod
    def of(pictures: Iterable[Iterable[str]]) -> Commonness:
        """Count the objects of pictures, each once a picture."""
        counts, together = collections.Counter[str](), collections.Counter[tuple[str, str]]()
        for objects in pictures:
            there = sorted(set(objects))
            counts.update(there)
            together.update(itertools.combinations(there, 2))
        return Commonness(counts, together)

    def beside(self, one: str, other: str) -> int:
        """Return how many pictures hold two objects."""
        return self.together.get((min(one, other), max(one, other)), 0)


def polls_of(there: Sequence[str], common: Commonness, options: Polls, draw: str) -> list[PollRow]:
    """Return the polls of a picture: for each kind the objects that are there, and after each one that is not.

    Args:
        there: words for all objects of the picture.
        common: of the data set; its objects are those that are asked for.
        options: kinds, and the question.
        draw: seed of the run and id of the row, with a slash between; they decide the choice.
    """
    return list(
        itertools.chain.from_iterable(
            _of_kind(dict.fromkeys(there), common, kind, options.template, draw) for kind in options.kinds
        )
    )


def _of_kind(
    there: Mapping[str, None], common: Commonness, kind: Sampling, template: str, draw: str
) -> Iterator[PollRow]:
    absent = [name for name in common.pictures if name not in there]
    for name in itertools.islice(there, len(absent)):  # as many yes as no
        yield _poll(kind, name, template, present=True)
        other = min(absent, key=lambda absent_one: _rank(absent_one, name, common, kind, draw))
        absent.remove(other)
        yield _poll(kind, other, template, present=False)


def _rank(absent: str, beside: str, common: Commonness, kind: Sampling, draw: str) -> tuple[int, int, str]:
    """Return what the absent objects are chosen by, the smallest first."""
    frequency = {"random": 0, "popular": common.pictures[absent], "adversarial": common.beside(absent, beside)}[kind]
    return -frequency, hashed(f"{draw}/{kind}/{absent}"), absent


def _poll(kind: Sampling, name: str, template: str, present: bool) -> PollRow:
    question = template.format_map({"object": name, "a_object": with_article(name)})
    return PollRow(kind=kind, object=name, question=question, answer="yes" if present else "no")
