"""Winoground: two pictures and two captions of the same words; is each picture matched with its own caption?

Thrush et al. 2022 (arXiv 2204.03162). The data are the config `quads` of a run, or any table with the published columns
image_0, image_1, caption_0, caption_1 and tag. Generators score a caption by its log probability given the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.collate import Part
from granary.training.evaluation.compositions import CHANCE, ties, winoground
from granary.training.evaluation.looked import LookedAt, own_logits
from granary.training.evaluation.pairs import PairScorer, load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions, SplitOptions
from granary.training.evaluation.scores import Scores

PICTURES = ("image_0", "image_1")
CAPTIONS = ("caption_0", "caption_1")


class WinogroundOptions(SplitOptions, ScorerOptions, frozen=True):
    """Options of Winoground."""


def evaluate(measured: Measured, options: WinogroundOptions) -> Scores:
    """Score both captions of every quad against both pictures; equal scores are wrong. A limit counts quads.

    Returns:
        text, image and group score with `.chance` and, where quads have tags, the score of each tag; the share of
        quads with a picture whose captions tie; the number of quads, of those without captions or with an unreadable
        picture; texts cut to the context.
    """
    dataset = _opened(measured, options)
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)
    before, columns = model.truncated, (*CAPTIONS, "tag")
    looked = LookedAt(dataset, columns, _has_captions, PICTURES, measured.limit)
    scores, tags = list[Tensor](), list[str]()
    for rows, pictures in looked.batches(model, measured.batch):
        scores.append(quad_scores(model, rows, pictures))
        tags += [str(row["tag"] or "") for row in rows]
    every = torch.cat(scores)
    counts = looked.counts("quads", "without_captions")
    cut: dict[str, float | None] = {"texts.truncated": model.truncated - before}
    return Scores({**of_quads(every, tags), **counts, **cut}, settings={"dead": looked.dead})


PROTOCOL = Protocol(evaluate, WinogroundOptions, batch=32)


def _opened(measured: Measured, options: WinogroundOptions) -> shards.Dataset:
    """Open the quads. Raises UserError where there are none."""
    needs, why, config = (*PICTURES, *CAPTIONS), "Winoground", "quads"
    try:
        shards.find_shards(measured.data, config)
    except UserError as error:
        raise UserError(
            f"data: {measured.data} has no quads; give a run with dataset/{config}, or Parquet files with the columns "
            f"{', '.join(needs)}"
        ) from error
    return shards.open_dataset(
        measured.data, needs, measured.split, options.holdout, why, measured.columns, config=config
    )


def _has_captions(row: Part) -> bool:
    return all(row[name] for name in CAPTIONS)


def quad_scores(model: PairScorer, rows: list[Part], pictures: Tensor) -> Tensor:
    """Return the scores of quads, (Q, 2, 2), [caption, picture].

    Args:
        model: scores them.
        rows: Q, with both captions.
        pictures: (Q, 2, ...), prepared.
    """
    texts = [[row[name] for name in CAPTIONS] for row in rows for _ in PICTURES]
    logits = own_logits(model, pictures.flatten(0, 1), range(len(texts)), texts)  # (2 Q, 2): picture, caption
    return logits.unflatten(0, (len(rows), 2)).transpose(1, 2)


def of_quads(scores: Tensor, tags: list[str]) -> dict[str, float | None]:
    """Return text, image and group score of quads with their chance and those of each tag, and the share of ties.

    Args:
        scores: (Q, 2, 2), [caption, picture].
        tags: of each; "" for none.
    """
    found: dict[str, float | None] = {}
    for name, right in winoground(scores).items():
        found |= {name: float(right.double().mean()), f"{name}.chance": CHANCE[name]}
        for tag in sorted(set(tags) - {""}):
            member = torch.tensor([other == tag for other in tags])
            found[f"{name}.{tag.replace('.', '_')}"] = float(right[member].double().mean())
    return found | {"ties": float(ties(scores).double().mean())}
