"""Image-text retrieval: find the picture of a caption, and a caption of a picture, among all of a dataset.

Several captions belong to a picture, as on the Karpathy splits of Flickr30k and COCO (Karpathy and Fei-Fei 2015, arXiv
1412.2306): text to image counts captions, image to text counts a picture as found where ONE of its captions is.
Shapes: N pictures, T captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from granary.training.data import shards
from granary.training.evaluation.pairs import encode_rows, load_image_text_model
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions, SplitOptions
from granary.training.evaluation.scores import Scores
from granary.training.models.pair_scores import products

K = (1, 5, 10)
CAPTIONS = 5
CELLS = 1 << 26  # scores held at once
Score = Callable[[Tensor, Tensor], Tensor]  # pictures, texts -> (N, T)


class RetrievalOptions(SplitOptions, ScorerOptions, frozen=True):
    """Options of image-text retrieval."""

    captions: int = Field(
        CAPTIONS,
        description="of a picture at most, the first ones: COCO's protocol takes 5 where there are more",
    )


def evaluate(measured: Measured, options: RetrievalOptions) -> Scores:
    """Measure R@1, R@5 and R@10 in both directions; without a split all rows are taken.

    Returns:
        text_to_image_R@K and image_to_text_R@K with `.chance`; the numbers of pictures and captions they are of, and of
        what was left out: pictures without captions and unreadable ones. Equal scores count as misses.
    """
    data, split, limit = measured.data, measured.split, measured.limit
    dataset = shards.open_dataset(data, ("image", "captions"), split, options.holdout, "retrieval", measured.columns)
    encoder = load_image_text_model(measured.model, measured.device, measured.dtype, options.scorer)
    encoded = encode_rows(encoder, dataset, "captions", batch=measured.batch, limit=limit)
    captions = [row["captions"][: options.captions] for row in encoded.rows]
    distinct = list(dict.fromkeys(text for texts in captions for text in texts))  # equal captions score exactly alike
    places = {text: place for place, text in enumerate(distinct)}
    before = encoder.truncated
    texts = encoder.texts(distinct)[[places[text] for texts_of_one in captions for text in texts_of_one]]
    owner = torch.tensor([number for number, texts_of_one in enumerate(captions) for _ in texts_of_one])
    read = min(dataset.count, dataset.count if limit is None else limit)
    counts = {
        "pictures": len(captions),
        "pictures.without_captions": read - len(captions) - len(encoded.dead),
        "pictures.unreadable": len(encoded.dead),
        "captions": len(owner),
        "captions.distinct": len(distinct),
        "captions.truncated": encoder.truncated - before,
    }
    settings = {"split": split, "captions": options.captions, "dead": encoded.dead}
    equal = len(owner) - len(distinct)
    notes = [f"{equal:,} captions are equal to another one: they score alike, which counts as a miss"] if equal else []
    found = recalls(encoded.vectors, texts, owner, score=encoder.scores)
    return Scores({**found, **counts}, notes, settings)


PROTOCOL = Protocol(evaluate, RetrievalOptions)


def recalls(
    images: Tensor, texts: Tensor, owner: Tensor, k: Sequence[int] = K, score: Score = products
) -> dict[str, float | None]:
    """Return R@K in both directions with their chance levels.

    Args:
        images, texts: (N, D) or, where scores depend on the pair, (N, ?, D); (T, D).
        owner: (T,) int64, the picture each caption belongs to; every picture has one or more.
        k: K.
        score: see `ImageTextModel.scores`.
    """
    by_text, by_image = ranks(images, texts, owner, score)
    captions = torch.bincount(owner, minlength=len(images)).tolist()
    scores: dict[str, float | None] = {}
    for direction, rank, chance in (
        ("text_to_image", by_text, lambda n: min(1.0, n / len(images))),
        ("image_to_text", by_image, lambda n: hit_chance(captions, len(texts), n)),
    ):
        for number in k:
            name = f"{direction}_R@{number}"
            scores |= {name: float((rank < number).double().mean()), f"{name}.chance": chance(number)}
    return scores


def ranks(images: Tensor, texts: Tensor, owner: Tensor, score: Score = products) -> tuple[Tensor, Tensor]:
    """Return how many wrong answers score at least as high as the right one, by caption (T,) and by picture (N,).

    The right answer of a picture is the best of its captions; its other captions are not wrong. Arguments are those of
    `recalls`.
    """
    count = max(1, CELLS // max(len(images), len(texts)))
    if images.ndim != 2 and len(images) * len(texts) <= CELLS:  # a score of a pair costs more than its place in memory
        return _ranks_of(score(images, texts), owner)
    by_text, by_image = [], []
    for start in range(0, len(texts), count):
        scores = _by_text(images, texts[start : start + count], score)  # (count, N)
        right = scores.gather(1, owner[start : start + count, None])
        by_text.append((scores >= right).sum(dim=1) - 1)
    for start in range(0, len(images), count):
        scores = score(images[start : start + count], texts)  # (count, T)
        belongs = owner == torch.arange(start, start + len(scores))[:, None]
        right = scores.masked_fill(~belongs, -torch.inf).amax(dim=1, keepdim=True)
        by_image.append(((scores >= right) & ~belongs).sum(dim=1))
    return torch.cat(by_text), torch.cat(by_image)


def _ranks_of(scores: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `ranks` does, of the scores of all pairs (N, T)."""
    right = scores.gather(0, owner[None])  # (1, T)
    belongs = owner == torch.arange(len(scores))[:, None]
    best = scores.masked_fill(~belongs, -torch.inf).amax(dim=1, keepdim=True)
    return (scores >= right).sum(dim=0) - 1, ((scores >= best) & ~belongs).sum(dim=1)


def _by_text(images: Tensor, texts: Tensor, score: Score) -> Tensor:
    """Return the scores of all pairs with texts as rows; how a product is rounded depends on what its rows are."""
    return products(texts, images) if images.ndim == 2 else score(images, texts).T


def hit_chance(captions: Sequence[int], total: int, k: int) -> float:
    """Return the share of pictures that a random order finds: the mean of 1 - C(total - n, k) / C(total, k).

    Args:
        captions: n of every picture.
        total: captions of all pictures.
        k: captions that count.
    """
    k = min(k, total)
    return sum(1 - math.comb(total - n, k) / math.comb(total, k) for n in captions) / len(captions)
