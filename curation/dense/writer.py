"""Summaries and negatives by a causal language model of `transformers`, with DCI's rules of what is accepted.

Lengths are those of a budget of 77 tokens, in proportion for another: a summary is accepted below 140 and asked to be
made shorter until it has 75 at most, and dropped above 77; a negative of a summary of n is accepted between n - 15 and
n + 50 and made shorter to n + 5. Every text is drawn from its own seed, so it depends on the seed of the run, its
entry and, through rounding alone, on the other texts of its batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from granary.curation.dense import prompts
from granary.curation.dense.engines import Entry, Text, seed_of
from granary.curation.dense.language_model import Ask, Generator
from granary.curation.dense.negatives import KINDS
from granary.curation.dense.packing import Counter, windows
from granary.curation.dense.recipe import Negatives, Summaries, Writer
from granary.curation.dense.texts import cleaned

CLIP = 77  # the budget that DCI's lengths belong to
PER_CALL = 5  # alternate summaries asked for at a time
ALTERNATES_OF_IMAGE, ALTERNATES_OF_MASK = 8, 4  # more than this many are asked for
NEW_TOKENS = 4  # of the model, at most, for each of the budget

Generate = Callable[[Sequence[Ask], Mapping[str, int]], list[str]]


@dataclass(frozen=True)
class Draft:
    """A text to be written, and which answers are accepted.

    Args:
        asks: tried in this order, one in each attempt.
        above, below: the length of an accepted answer lies between, neither included.
        longest: an accepted answer above this is asked to be made shorter.
        unlike: an answer that is this text, in any case, is not accepted.
    """

    asks: Sequence[Ask]
    above: int
    below: int
    longest: int
    unlike: str = ""

    def accepts(self, text: str, size: int) -> bool:
        """Say whether an answer of a length is accepted."""
        return text != "" and self.above < size < self.below and text.lower() != self.unlike.lower()


class Answer(NamedTuple):
    """What the model wrote, "" where nothing was accepted, and the ask that it answers."""

    text: str
    ask: Ask


@dataclass(frozen=True)
class ModelWriter:
    """Writes summaries and negatives.

    Args:
        generate: asks with numbers for their templates -> answers; replaced in tests.
        counter: of the budget.
        options: of the model: its name, the attempts at a text, the length of a description that is shown.
        summary_options: whether further summaries are asked for.
        negative_options: negatives of each kind.
        seed: of the run.
    """

    generate: Generate
    counter: Counter
    options: Writer
    summary_options: Summaries
    negative_options: Negatives
    seed: int = 0

    @classmethod
    def of(
        cls, options: Writer, summaries: Summaries, negatives: Negatives, counter: Counter, seed: int
    ) -> ModelWriter:
        """Return the writer of a recipe's options."""
        return cls(Generator(options, counter.budget * NEW_TOKENS), counter, options, summaries, negatives, seed)

    def scaled(self, tokens: int) -> int:
        """Return a length of DCI's for the budget at hand."""
        return round(tokens * self.counter.budget / CLIP)

    def summaries(self, entries: Sequence[Entry]) -> list[list[Text]]:
        """Return the accepted summary of each entry, then its alternates; none where no answer was accepted."""
        shown = [self._shown(entry.description) for entry in entries]
        answers = self._accepted([self._summary(entry, text) for entry, text in zip(entries, shown, strict=True)])
        texts = [
            [self._text(text, "summary", ask)] if text and self._size(text) <= self.counter.budget else []
            for text, ask in answers
        ]
        if self.summary_options.alternates:
            chosen = [place for place, accepted in enumerate(texts) if accepted]
            further = self._further([entries[p] for p in chosen], [shown[p] for p in chosen])
            for place, alternates in zip(chosen, further, strict=True):
                texts[place] += [text for text in alternates if text.text != texts[place][0].text]
        return texts

    def _summary(self, entry: Entry, shown: str) -> Draft:
        names = [(entry.id, "summary", str(attempt)) for attempt in range(self.options.attempts)]
        asks = [Ask(prompts.SUMMARY, shown, seed_of(self.seed, *name)) for name in names]
        return Draft(asks, -1, self.scaled(140), self.counter.budget - self.scaled(2))

    def negatives(self, entries: Sequence[Entry], positives: Sequence[str]) -> list[list[Text]]:
        """Return for each entry the accepted negatives of every kind, none of them twice."""
        drafts = [
            (place, kind, self._negative(entry, positives[place], kind, number))
            for place, entry in enumerate(entries)
            for kind in KINDS
            for number in range(self.negative_options.per_image if entry.base else self.negative_options.per_mask)
        ]
        texts: list[list[Text]] = [[] for _ in entries]
        answers = self._accepted([draft for _, _, draft in drafts])
        for (place, kind, draft), (text, ask) in zip(drafts, answers, strict=True):
            known = {positives[place].lower(), *(other.text.lower() for other in texts[place])}
            if text and text.lower() not in known and self._size(text) <= draft.longest:
                texts[place].append(self._text(text, kind, ask, kind))
        return texts

    def _negative(self, entry: Entry, positive: str, kind: str, number: int) -> Draft:
        names = [(entry.id, kind, str(number), str(attempt)) for attempt in range(self.options.attempts)]
        asks = [Ask(prompts.NEGATIVES[kind], positive, seed_of(self.seed, *name)) for name in names]
        size = self._size(positive)
        return Draft(asks, size - self.scaled(15), size + self.scaled(50), size + self.scaled(5), positive)

    def _accepted(self, drafts: Sequence[Draft]) -> list[Answer]:
        """Return the first accepted answer of each draft, made as short as it should be, with its ask.

        Where nothing was accepted the text is "". A text that cannot be made shorter stays as it is.
        """
        answers = [Answer("", draft.asks[0]) for draft in drafts]
        for attempt in range(self.options.attempts):
            pending = [place for place, answer in enumerate(answers) if not answer.text]
            asks = [drafts[place].asks[attempt] for place in pending]
            for place, ask, reply in zip(pending, asks, self._replies(asks), strict=True):
                if drafts[place].accepts(reply, self._size(reply)):
                    answers[place] = Answer(cleaned(reply), ask)
        for attempt in range(self.options.attempts):
            self._shorten(answers, drafts, attempt)
        return answers

    def _shorten(self, answers: list[Answer], drafts: Sequence[Draft], attempt: int) -> None:
        """Replace the answers that are longer than they should be by shorter ones, where the model writes such."""
        pending = [p for p, answer in enumerate(answers) if answer.text and self._size(answer.text) > drafts[p].longest]
        seeds = [seed_of(answers[place].ask.seed, "shorter", str(attempt)) for place in pending]
        asks = [Ask(prompts.SHORTER, answers[p].text, seed) for p, seed in zip(pending, seeds, strict=True)]
        for place, reply in zip(pending, self._replies(asks), strict=True):
            if reply and self._size(reply) < self._size(answers[place].text):
                answers[place] = Answer(cleaned(reply), answers[place].ask)

    def _replies(self, asks: Sequence[Ask]) -> list[str]:
        return [prompts.answer(text) for text in self.generate(asks, self.numbers)]

    def _further(self, entries: Sequence[Entry], shown: Sequence[str]) -> list[list[Text]]:
        """Return alternate summaries: five a call, kept below the budget, until there are more than enough."""
        texts: list[list[Text]] = [[] for _ in entries]
        enough = [self._enough(entry) for entry in entries]
        for call in range(2 * self.options.attempts):
            pending = [place for place, written in enumerate(texts) if len(written) <= enough[place]]
            asks = [
                Ask(prompts.ALTERNATES, shown[p], seed_of(self.seed, entries[p].id, "alternate", str(call)))
                for p in pending
            ]
            for place, ask, reply in zip(pending, asks, self.generate(asks, self.numbers), strict=True):
                texts[place] += self._listed(reply, ask, {text.text for text in texts[place]})
        return texts

    def _enough(self, entry: Entry) -> float:
        """Return how many alternates are not yet enough."""
        of_mask = max(ALTERNATES_OF_MASK, math.log(max(1, self._size(entry.description))))
        return ALTERNATES_OF_IMAGE if entry.base else of_mask

    def _listed(self, reply: str, ask: Ask, known: set[str]) -> list[Text]:
        """Return the captions of a list that are short enough and not known."""
        captions = dict.fromkeys(map(cleaned, prompts.listed(reply)[:PER_CALL]))
        fitting = [text for text in captions if text not in known and self._size(text) < self.counter.budget]
        return [self._text(text, "alternate", ask) for text in fitting]

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers of the templates: DCI asks for about 65 words for 77 tokens."""
        return {"words": max(1, round(65 / CLIP * self.counter.budget)), "count": PER_CALL}

    def _shown(self, description: str) -> str:
        """Return the beginning of a description, cut between windows."""
        total = 0
        shown: list[str] = []
        for window in windows(description, self.counter):
            total += window.tokens
            if shown and total > self.options.max_input:
                break
            shown.append(window.text)
        return " ".join(shown)

    def _size(self, text: str) -> int:
        return self.counter([text])[0]

    def _text(self, text: str, prompt: str, ask: Ask, kind: str = "") -> Text:
        name = os.path.basename(self.options.model.rstrip("/"))
        return Text(text, f"model:{name}", f"{prompt}/{prompts.VERSION}", ask.seed, kind)
