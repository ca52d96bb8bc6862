"""Order: does a model tell a caption from the same words in another order, or with attributes or relations exchanged?

After ARO (Yuksekgonul et al. 2022, arXiv 2210.01936). The negatives are made here from the captions, see
`granary.training.evaluation.negatives`, or read from a column. A tie counts as wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.data.tokenizer import filled
from granary.training.evaluation.looked import LookedAt, listed, own_logits
from granary.training.evaluation.negatives import CHANGES, negative
from granary.training.evaluation.pairs import PairScorer, load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions, SplitOptions
from granary.training.evaluation.protocols.binary_choice import accuracies_by_kind
from granary.training.evaluation.scores import Scores, Words

NOTES = (
    "hardest: a caption must score higher than each of its negatives. Negatives are made by rules: a few are true, as "
    "`black and white` for `white and black`.",
)


class OrderOptions(SplitOptions, ScorerOptions, frozen=True):
    """Options of the order test."""

    kinds: Words = Field(tuple(CHANGES), min_length=1, description=f"of {', '.join(CHANGES)}")
    captions: int = Field(1, ge=1, description="of a picture at most, the first ones")
    negatives: str | None = Field(
        None, description="column of negatives in the place of those made here: texts, or objects with kind and text"
    )


class Asked(NamedTuple):
    """A caption of a picture, and texts that are wrong: each with its kind."""

    at: int
    caption: str
    wrong: list[tuple[str, str]]


def evaluate(measured: Measured, options: OrderOptions) -> Scores:
    """Compare captions with their negatives; without a split all rows are taken.

    Returns:
        Accuracy for each kind with `.questions`, their `mean`, `accuracy` over all questions, `chance`; hardest with
        `.chance`; the number of pictures, of those without a caption that can be made wrong, and of unreadable ones.

    Raises:
        UserError: an unknown kind, or no caption that a negative can be made of.
    """
    check_kinds(options)
    needs = ["image", "captions", *([options.negatives] if options.negatives else [])]
    columns = measured.columns
    dataset = shards.open_dataset(measured.data, needs, measured.split, options.holdout, "the order test", columns)
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)
    before = model.truncated
    looked = LookedAt(dataset, needs[1:], lambda row: list(asked_of(0, row, options)), limit=measured.limit)
    results, hardest = defaultdict[str, list[bool]](list), list[tuple[bool, float]]()
    for rows, pictures in looked.batches(model, measured.batch):
        asked = [one for at, row in enumerate(rows) for one in asked_of(at, row, options)]
        hardest += compared(model, pictures[:, 0], asked, results)
    scores = accuracies_by_kind(results) | {
        "hardest": sum(won for won, _ in hardest) / len(hardest),
        "hardest.chance": sum(chance for _, chance in hardest) / len(hardest),
    }
    counts = looked.counts("pictures", "without_negatives") | {"texts.truncated": model.truncated - before}
    return Scores({**scores, **counts}, settings={"dead": looked.dead})


PROTOCOL = Protocol(evaluate, OrderOptions, batch=32, notes=NOTES)


def check_kinds(options: OrderOptions) -> None:
    """Raise UserError for a kind of negatives that there is not."""
    unknown = next((kind for kind in options.kinds if kind not in CHANGES), None)
    if unknown:
        raise UserError(f"options.kinds: {unknown!r} is not right; the kinds are {', '.join(CHANGES)}")


def asked_of(at: int, row: Part, options: OrderOptions) -> Iterator[Asked]:
    """Yield the captions of a row that have negatives.

    Args:
        at: its number in the batch.
        row: with captions and, where they are read, negatives.
        options: which.

    Raises:
        UserError: the column of negatives holds something else.
    """
    captions = filled(row["captions"])
    for caption in captions[: options.captions]:
        if options.negatives:
            wrong = list(_read(row[options.negatives], options.negatives))
        else:
            made = ((kind, negative(caption, kind, str(row["key"]), captions)) for kind in options.kinds)
            wrong = [(kind, text) for kind, text in made if text is not None]
        if wrong:
            yield Asked(at, caption, wrong)


def _read(values: object, column: str) -> Iterator[tuple[str, str]]:
    """Yield kind and text of the negatives in a column; a text alone is one."""
    for value in listed(values):
        kind, text = (value.get("kind"), value.get("text")) if isinstance(value, Mapping) else (None, value)
        if not isinstance(text, str):
            raise UserError(f"options.negatives: the column {column} has {value}; give texts, or objects with a text")
        yield str(kind or column), text


def compared(
    model: PairScorer, pictures: Tensor, asked: Sequence[Asked], results: Mapping[str, list[bool]]
) -> list[tuple[bool, float]]:
    """Add to `results`, for each kind, whether captions win; return whether each wins against all, and its chance.

    Args:
        model: scores texts.
        pictures: (N, ...), prepared.
        asked: captions with negatives.
        results: kind -> whether the caption won, one after another.
    """
    questions = [(one.at, kind, one.caption, text) for one in asked for kind, text in one.wrong]
    logits = own_logits(model, pictures, [q[0] for q in questions], [q[2:] for q in questions])
    won = (logits[:, 0] > logits[:, 1]).tolist()
    for (_, kind, _, _), right in zip(questions, won, strict=True):
        results[kind].append(right)
    answers = iter(won)
    return [(all([next(answers) for _ in one.wrong]), 1 / (1 + len({text for _, text in one.wrong}))) for one in asked]
