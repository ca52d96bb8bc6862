"""Captioning: descriptions of pictures against their captions, by BLEU-4, ROUGE-L and CIDEr-D.

Chen et al. 2015 (arXiv 1504.00325). `granary.training.evaluation.caption_scores` says how texts are cut into words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.tokenizer import filled
from granary.training.evaluation.caption_scores import bleu, cider_d, rouge_l, words
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.looked import LookedAt
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import DeadLetter, Scores

TOKENS = 32
NOTES = (".other: the same texts as descriptions of other pictures. BLEU and ROUGE are 0 .. 1, CIDEr-D 0 .. 10.",)


class DescribeOptions(SplitOptions, frozen=True):
    """Options of protocols that let pictures be described."""

    tokens: int = Field(TOKENS, ge=1, description="of a description at most")


class CaptioningOptions(DescribeOptions, frozen=True):
    """Options of captioning."""

    out: str | None = Field(None, description="JSON file to write the descriptions to, [{image_id, caption}] as COCO's")


class Described(NamedTuple):
    """Descriptions of pictures.

    Args:
        keys: of the rows.
        texts: what a model says.
        references: captions of the data; may be none where they were not asked for.
        objects: what the column of objects has.
        counts: of rows.
        dead: pictures that cannot be decoded.
    """

    keys: list[str]
    texts: list[str]
    references: list[list[str]]
    objects: list[object]
    counts: dict[str, float | None]
    dead: list[DeadLetter]


def evaluate(measured: Measured, options: CaptioningOptions) -> Scores:
    """Describe every picture that has captions; without a split all rows are taken.

    Returns:
        bleu_4, rouge_l and cider_d, each with `.other`; the mean number of words; the number of pictures, of those
        without captions, of unreadable ones, and of different descriptions.
    """
    found = described(measured, options, ["captions"])
    if options.out:
        rows = [{"image_id": key, "caption": text} for key, text in zip(found.keys, found.texts, strict=True)]
        storage.write_bytes(options.out, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())
    counts = {**found.counts, "pictures.different_texts": len(set(found.texts))}
    return Scores({**agreements(found.texts, found.references), **counts}, settings={"dead": found.dead})


PROTOCOL = Protocol(evaluate, CaptioningOptions, batch=32, notes=NOTES)


def described(
    measured: Measured, options: DescribeOptions, needs: Sequence[str], also: Sequence[str] = ()
) -> Described:
    """Describe the pictures of the rows that have what is needed.

    Args:
        measured: model and data.
        options: how.
        needs: columns beside the pictures, of which a row must have a value.
        also: further columns that are read, where they are there.
    """
    dataset = shards.open_dataset(
        measured.data, ["image", *needs], measured.split, options.holdout, "captioning", measured.columns
    )
    generator = load_generator(measured.model, measured.device, measured.dtype)
    columns = [*needs, *also]
    looked = LookedAt(
        dataset,
        columns,
        lambda row: all(filled(row[n]) if n == "captions" else row[n] for n in needs),
        limit=measured.limit,
    )
    keys, texts, references, objects = list[str](), list[str](), list[list[str]](), list[object]()
    for rows, pictures in looked.batches(generator, measured.batch):
        texts += generator.describe(pictures[:, 0], options.tokens)
        keys += [row["key"] for row in rows]
        references += [filled(row.get("captions")) for row in rows]
        objects += [row.get("objects") for row in rows]
    counts = looked.counts("pictures", f"without_{'_or_'.join(needs)}")
    return Described(keys, texts, references, objects, counts, looked.dead)


def agreements(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Return how descriptions agree with captions of their pictures, and of others half the data away."""
    half = max(1, len(texts) // 2)
    turned = [*texts[half:], *texts[:half]]
    scores: dict[str, float | None] = {}
    for name, score in (("bleu_4", bleu), ("rouge_l", rouge_l), ("cider_d", _mean_cider)):
        scores[name] = score(texts, references)
        scores[f"{name}.other"] = score(turned, references) if len(texts) > 1 else None
    return scores | {"words": sum(len(words(text)) for text in texts) / len(texts)}


def _mean_cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    return sum(cider_d(texts, references)) / len(texts)
