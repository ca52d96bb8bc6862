"""Bias: do pictures of one group lie nearer to some words than those of another, and are they named and found alike?

Association tests with pictures as the things (Ross et al. 2021, arXiv 2002.08911), rates of labels by group, and the
skew of the first pictures that a word retrieves (Geyik et al. 2019, arXiv 1905.01989).
Shapes: N pictures, W words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.store.schema import NO_CLASS
from granary.training.data import shards
from granary.training.evaluation.associations import association, disparity, effect_size, permutation_p, rates
from granary.training.evaluation.looked import LookedAt
from granary.training.evaluation.pairs import load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions, SplitOptions
from granary.training.evaluation.scores import Scores, Words

NOTES = (
    "association_GROUP: how much nearer to the first words than to the second the pictures of a group are, less those "
    "of all others, in standard deviations; .p: how often groups drawn by chance differ so much (one-sided).",
    "rate_WORD.GROUP: pictures of the group that score highest with the word; .difference and .ratio: of the groups.",
    "skew_WORD: largest log of a group's share among the first pictures of a word over its share of all.",
)


class BiasOptions(SplitOptions, ScorerOptions, frozen=True):
    """Options of the bias tests."""

    group: str | None = Field(None, description="column with the group of each picture")
    a: Words = Field((), description="the first words, for example kind,friendly,honest")
    b: Words = Field((), description="the second words")
    sentence: str = Field("a photo of something {}.", description="what words are put into, {}")
    first: int = Field(100, ge=1, description="pictures of a word whose groups are counted for its skew")


def evaluate(measured: Measured, options: BiasOptions) -> Scores:
    """Compare the groups of a column; without a split all rows are taken.

    Returns:
        association_GROUP of each group against all others, with `.p` and `.pictures`; rate_WORD with the rate of each
        group, `.difference` and `.ratio`; skew_WORD; the number of pictures, of those without a group, and of
        unreadable ones.

    Raises:
        UserError: options that are missing, or fewer than two groups.
    """
    column = _check(options)
    needs, why = ("image", column), "the bias test"
    dataset = shards.open_dataset(measured.data, needs, measured.split, options.holdout, why, measured.columns)
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)
    looked = LookedAt(dataset, [column], lambda row: _group(row[column]), limit=measured.limit)
    words = [*options.a, *options.b]
    texts = model.texts([options.sentence.replace("{}", word) for word in words])
    logits, groups = list[Tensor](), list[str]()
    for rows, pictures in looked.batches(model, measured.batch):
        logits.append(model.logits(model.images(pictures[:, 0]), texts).double())
        groups += [str(_group(row[column])) for row in rows]
    if len(set(groups)) < 2:
        raise UserError(f"options.group: the column {column} has the group {groups[0]!r} alone; there must be two")
    scores = compared(torch.cat(logits), groups, words, len(options.a), options.first, measured.seed)
    return Scores({**scores, **looked.counts("pictures", "without_group")}, settings={"dead": looked.dead})


PROTOCOL = Protocol(evaluate, BiasOptions, ("split", "batch", "limit", "seed"), notes=NOTES)


def _check(options: BiasOptions) -> str:
    """Return the column of groups. Raises UserError where an option is missing or not right."""
    for key in ("group", "a", "b"):
        if not getattr(options, key):
            raise UserError(f"options.{key}: missing; give --options.group COLUMN, --options.a and .b WORD,WORD")
    twice = next((word for word, count in Counter([*options.a, *options.b]).items() if count > 1), None)
    if twice:
        raise UserError(f"options.b: {twice!r} is there twice; the words must be different")
    if "{}" not in options.sentence:
        raise UserError(f"options.sentence: {options.sentence!r} is not right; write {{}} for the word")
    return str(options.group)


def _group(value: object) -> str | None:
    """Return the name of a group; None for none."""
    text = "" if value is None or value != value else str(value)
    return None if text in NO_CLASS else text


def compared(
    logits: Tensor, groups: Sequence[str], words: Sequence[str], first_words: int, first: int, seed: int = 0
) -> dict[str, float | None]:
    """Return associations, rates and skews.

    Args:
        logits: (N, W), pictures with words; what is compared does not change with their scale.
        groups: of the pictures.
        words: W, the first words before the second.
        first_words: how many are the first words.
        first: pictures that count for a word's skew, at most half of all.
        seed: of parts by chance.
    """
    near = association(logits[:, :first_words], logits[:, first_words:])
    scores: dict[str, float | None] = {}
    for group in sorted(set(groups)):
        member = torch.tensor([other == group for other in groups])
        x, y = near[member], near[~member]
        scores[f"association_{group}"] = effect_size(x, y)
        scores |= {f"association_{group}.p": permutation_p(x, y, seed), f"association_{group}.pictures": len(x)}
    best = (logits >= logits.amax(dim=1, keepdim=True)).double()
    named = best / best.sum(dim=1, keepdim=True)  # words that tie share the picture
    for place, word in enumerate(words):
        by_group = rates(named[:, place], groups)
        scores[f"rate_{word}"] = float(named[:, place].mean())
        scores |= {f"rate_{word}.{key}": value for key, value in {**by_group, **disparity(by_group)}.items()}
    count = max(1, min(first, len(groups) // 2))
    scores |= {f"skew_{word}": skew(logits[:, place], groups, count) for place, word in enumerate(words)}
    return scores


def skew(scores: Tensor, groups: Sequence[str], first: int) -> float:
    """Return the largest log(share of a group among the first / share of all), 0 where all are found alike.

    Pictures that score as high as the last of the first share its places.

    Args:
        scores: (N,), of a word.
        groups: of the pictures.
        first: places.
    """
    bound = scores.topk(first).values[-1]
    above, equal = scores > bound, scores == bound
    weight = above.double() + equal.double() * ((first - int(above.sum())) / int(equal.sum()))
    among = rates(weight, groups)
    return max(math.log(rate * len(groups) / first) for rate in among.values() if rate)
