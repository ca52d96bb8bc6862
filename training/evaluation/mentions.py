"""Things that captions mention though they are not there (CHAIR), and yes-or-no answers about them (POPE)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from granary.training.evaluation.caption_scores import words

Names = Mapping[tuple[str, ...], str]  # words, one form of a name -> the thing


def vocabulary(things: Mapping[str, Sequence[str]]) -> Names:
    """Return every form of the names of things: their synonyms, in singular and plural.

    Args:
        things: name -> synonyms; the name itself is one.
    """
    forms = {}
    for name, synonyms in things.items():
        for synonym in (*synonyms, name):
            *before, last = words(synonym) or [""]
            forms.update({(*before, form): name for form in plurals(last)})
    return forms


def plurals(word: str) -> Iterator[str]:
    """Yield a noun and its regular plurals; irregular ones are synonyms."""
    yield from (word, f"{word}s", f"{word}es")
    if word.endswith("y"):
        yield f"{word[:-1]}ies"
    if word.endswith("f"):
        yield f"{word[:-1]}ves"
    if word.endswith("fe"):
        yield f"{word[:-2]}ves"


def mentioned(caption: str, names: Names) -> set[str]:
    """Return the things that a caption names; of names that begin at one word the longest counts: a hot dog is no dog.

    Args:
        caption: the text.
        names: of `vocabulary`.
    """
    tokens, found, place = words(caption), set(), 0
    longest = max(map(len, names), default=0)
    while place < len(tokens):
        sizes = range(min(longest, len(tokens) - place), 0, -1)
        size = next((n for n in sizes if tuple(tokens[place : place + n]) in names), 0)
        if size:
            found.add(names[tuple(tokens[place : place + size])])
        place += max(1, size)
    return found


def chair(mentions: Sequence[Collection[str]], present: Sequence[Collection[str]]) -> dict[str, float | None]:
    """Return how much captions make up (Rohrbach et al. 2018, arXiv 1809.02156); a thing counts once in a caption.

    Args:
        mentions: the things that each caption names.
        present: those in its picture.

    Returns:
        chair_i: wrong of all things mentioned, None where none is; chair_s: captions with a wrong one of all captions;
        recall: things mentioned of those present, None where none is.
    """
    both = [(set(said), set(there)) for said, there in zip(mentions, present, strict=True)]
    wrong = [len(said - there) for said, there in both]
    named, things = sum(len(said) for said, _ in both), sum(len(there) for _, there in both)
    return {
        "chair_i": sum(wrong) / named if named else None,
        "chair_s": sum(map(bool, wrong)) / len(both),
        "recall": (named - sum(wrong)) / things if things else None,
    }


def polled(yes: Tensor, truth: Tensor) -> dict[str, float | None]:
    """Return how yes-or-no answers agree with the truth (POPE; Li et al. 2023, arXiv 2305.10355).

    Args:
        yes: (n,) bool, the answers.
        truth: (n,) bool.

    Returns:
        accuracy, precision (None without a yes), recall (None where all are no), f1 (None without either), yes_rate.
    """
    right = int((yes & truth).sum())
    said, real = int(yes.sum()), int(truth.sum())
    return {
        "accuracy": float((yes == truth).double().mean()),
        "precision": right / said if said else None,
        "recall": right / real if real else None,
        "f1": 2 * right / (said + real) if said + real else None,
        "yes_rate": said / len(yes),
    }


def best_bound(scores: Tensor, truth: Tensor) -> float:
    """Return the score from which on yes is the answer, so that most are right: midway between two; (n,), (n,) bool."""
    values = scores.double().unique()
    bounds = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    right = [int(((scores.double() >= bound) == truth).sum()) for bound in bounds.tolist()]
    return float(bounds[right.index(max(right))])
