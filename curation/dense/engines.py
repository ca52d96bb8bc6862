"""Text engines: where the summaries and negatives of an entry come from.

An engine takes entries and returns a list of texts for each, in order, empty where it has none. Engines are tried one
after the other; every text says which one made it, with which version of which prompt or rule, and from which seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from granary.curation.dense.negatives import KINDS, negatives
from granary.curation.dense.packing import Counter, windows
from granary.curation.dense.texts import ALSO
from granary.curation.store.sampling import hashed

WINDOWS_VERSION = "sentence-windows/1"


@dataclass(frozen=True)
class Text:
    """A summary or a negative.

    Args:
        text: what it says.
        engine: given, windows, rules, or model:NAME.
        prompt: name and version of the prompt or rule; "" where it was given.
        seed: of the random choices that made it; None where there were none.
        kind: of a negative.
        tokens: its length; 0 until it is counted.
        score: logit against the picture, where it was given.
    """

    text: str
    engine: str
    prompt: str = ""
    seed: int | None = None
    kind: str = ""
    tokens: int = 0
    score: float | None = None


@dataclass(frozen=True)
class Entry:
    """A whole image or a mask, with what the engines need.

    Args:
        id: stable.
        key: "base" or "m-IDX-sc".
        description: everything said of it.
        summaries, negatives, scores: given in the data.
    """

    id: str
    key: str
    description: str
    summaries: Sequence[str] = ()
    negatives: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def base(self) -> bool:
        """Whether it is the whole image."""
        return self.key == "base"


class Engine(Protocol):
    """Makes texts for entries."""

    def summaries(self, entries: Sequence[Entry]) -> list[list[Text]]:
        """Return the summaries of each entry, the first one first."""
        ...

    def negatives(self, entries: Sequence[Entry], positives: Sequence[str]) -> list[list[Text]]:
        """Return the negatives of each entry, whose first summary is given."""
        ...


def seed_of(seed: int, *names: str) -> int:
    """Return a seed in [0, 2^63) from the seed of the run and names, so that order and worker do not matter."""
    return hashed("\0".join([str(seed), *names])) >> 1


class Given:
    """Takes what the data holds: the summaries, negatives and scores of sDCI, the captions of COCO."""

    def summaries(self, entries: Sequence[Entry]) -> list[list[Text]]:
        """Return the given summaries."""
        return [[Text(summary, "given") for summary in entry.summaries] for entry in entries]

    def negatives(self, entries: Sequence[Entry], positives: Sequence[str]) -> list[list[Text]]:
        """Return the given negatives with their scores, kind by kind."""
        return [
            [
                Text(text, "given", kind=kind, score=entry.scores.get(f"{kind}_{number}"))
                for kind, texts in entry.negatives.items()
                for number, text in enumerate(texts)
            ]
            for entry in entries
        ]


@dataclass(frozen=True)
class Windows:
    """Takes the first windows of the description.

    Args:
        counter: of the budget.
        most: windows of an entry.
    """

    counter: Counter
    most: int

    def summaries(self, entries: Sequence[Entry]) -> list[list[Text]]:
        """Return the first windows of each description, without the sentence that joins its parts."""
        return [
            [
                Text(window.text, "windows", WINDOWS_VERSION, tokens=window.tokens)
                for window in itertools.islice(
                    windows(entry.description.replace(f"\n{ALSO}", ""), self.counter), self.most
                )
            ]
            for entry in entries
        ]

    def negatives(self, entries: Sequence[Entry], positives: Sequence[str]) -> list[list[Text]]:
        """Return none."""
        return [[] for _ in entries]


@dataclass(frozen=True)
class Rules:
    """Makes negatives by rule; each fits the budget.

    Args:
        counter: of the budget.
        seed: of the run.
        per_image, per_mask: negatives of each kind.
    """

    counter: Counter
    seed: int
    per_image: int = 3
    per_mask: int = 1

    def summaries(self, entries: Sequence[Entry]) -> list[list[Text]]:
        """Return none."""
        return [[] for _ in entries]

    def negatives(self, entries: Sequence[Entry], positives: Sequence[str]) -> list[list[Text]]:
        """Return up to the wanted number of each kind."""
        return [
            [text for kind in KINDS for text in self._of_kind(entry, positive, kind)]
            for entry, positive in zip(entries, positives, strict=True)
        ]

    def _of_kind(self, entry: Entry, positive: str, kind: str) -> list[Text]:
        seed = seed_of(self.seed, entry.id, kind)
        made = (Text(rule.text, "rules", rule.name, seed, kind) for rule in negatives(positive, kind, seed))
        fitting = (text for text in made if self._fits(text.text, positive))
        return list(itertools.islice(fitting, self.per_image if entry.base else self.per_mask))

    def _fits(self, text: str, positive: str) -> bool:
        """Say whether a negative is within the budget, or no longer than a summary that is not, as given ones may."""
        length = self.counter([text])[0]
        return length <= self.counter.budget or length <= self.counter([positive])[0]


def first_summaries(entries: Sequence[Entry], engines: Sequence[Engine]) -> list[list[Text]]:
    """Return for each entry the summaries of the first engine that has some."""
    chosen: list[list[Text]] = [[] for _ in entries]
    for engine in engines:
        missing = [place for place, texts in enumerate(chosen) if not texts]
        made = engine.summaries([entries[place] for place in missing]) if missing else []
        for place, texts in zip(missing, made, strict=True):
            chosen[place] = texts
    return chosen


def first_negatives(entries: Sequence[Entry], positives: Sequence[str], engines: Sequence[Engine]) -> list[list[Text]]:
    """Return for each entry the negatives of the first engine that has some."""
    chosen: list[list[Text]] = [[] for _ in entries]
    for engine in engines:
        missing = [place for place, texts in enumerate(chosen) if not texts]
        if missing:
            made = engine.negatives([entries[place] for place in missing], [positives[place] for place in missing])
            for place, texts in zip(missing, made, strict=True):
                chosen[place] = texts
    return chosen
