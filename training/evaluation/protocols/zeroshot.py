"""Zero-shot classification: the class whose name, put into sentences, is nearest to a picture (arXiv 2103.00020, 3.1).

The vector of a class is the mean of its sentences' unit vectors, of unit length again, unless the model says how its
texts are averaged: vectors are, not scores.
Shapes: n pictures, C classes, P templates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.evaluation.pairs import encode_rows, load_image_text_model
from granary.training.evaluation.protocol import (
    Measured,
    Protocol,
    ScorerOptions,
    SplitOptions,
    json_option,
    text_option,
)
from granary.training.evaluation.scores import Scores
from granary.training.models.pair_scores import mean_direction

TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a small picture of a {}.",
    "a blurry photo of a {}.",
    "a close view of a {}.",
    "a photo of the {}.",
    "there is a {} in the photo.",
)
TOP = (1, 5)


class ZeroShotOptions(SplitOptions, ScorerOptions, frozen=True):
    """Options of zero-shot classification."""

    templates: str | None = Field(
        None, description="a text file, one sentence a line with {} for the name; default: seven of granary's own"
    )
    names: str | None = Field(
        None,
        description="a JSON file, label -> name to put into the sentences; labels it lacks keep their own",
    )


def evaluate(measured: Measured, options: ZeroShotOptions) -> Scores:
    """Classify the labelled pictures of a dataset by the names of its labels; without a split all rows are taken.

    Returns:
        top1 and top5 with `.chance`; top1 with its mean over the classes that occur and the numbers of classes, of
        pictures, and of those left out: without a label, unreadable. Equal scores count as wrong.
    """
    data, limit, needs, why = measured.data, measured.limit, ("image", "label"), "zero-shot classification"
    dataset = shards.open_dataset(data, needs, measured.split, options.holdout, why, measured.columns)
    classes = shards.class_names([dataset])
    if len(classes) < 2:
        raise UserError(f"data: the labels of {data} have {len(classes)} classes; zero-shot classification needs two")
    words, sentences = read_names(options.names, classes), read_templates(options.templates)
    encoder = load_image_text_model(measured.model, measured.device, measured.dtype, options.scorer)
    encoded = encode_rows(encoder, dataset, "label", classes, measured.batch, limit)
    labels = torch.tensor([row["label"] for row in encoded.rows])
    vectors = class_vectors(encoder.texts, words, sentences, encoder.ensemble)
    rank = wrong_above(encoder.scores(encoded.vectors, vectors), labels)
    read = dataset.count if limit is None else min(limit, dataset.count)
    counts: dict[str, float | None] = {
        "top1.classes": len(classes),
        "top1.pictures": len(labels),
        "top1.unlabelled": read - len(labels) - len(encoded.dead),
        "top1.unreadable": len(encoded.dead),
    }
    settings = {"split": measured.split, "templates": sentences, "names": words, "dead": encoded.dead}
    return Scores({**top_accuracies(rank, labels, len(classes)), **counts}, (), settings)


PROTOCOL = Protocol(evaluate, ZeroShotOptions)


def class_vectors(
    encode: Callable[[Sequence[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str],
    ensemble: Callable[[Tensor], Tensor] = mean_direction,
) -> Tensor:
    """Return a vector for each class, (C, D).

    Args:
        encode: texts -> (T, D) unit rows.
        names: of the classes.
        templates: sentences with {} for the name.
        ensemble: (C, P, D) -> (C, D), see `ImageTextModel.ensemble`.
    """
    sentences = [template.replace("{}", name) for name in names for template in templates]
    vectors = encode(sentences).unflatten(0, (len(names), len(templates)))  # (C, P, D)
    return ensemble(vectors)


def wrong_above(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many wrong classes score at least as high as the right one: (n, C), (n,) -> (n,)."""
    return (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1


def top_accuracies(rank: Tensor, labels: Tensor, classes: int) -> dict[str, float | None]:
    """Return the share of pictures whose class is among the first 1 and 5, and for 1 its mean over classes."""
    scores: dict[str, float | None] = {}
    for top in TOP:
        scores |= {f"top{top}": float((rank < top).double().mean()), f"top{top}.chance": min(1.0, top / classes)}
    right = (rank < 1).double()
    per_class = [float(right[labels == number].mean()) for number in labels.unique().tolist()]
    return {**scores, "top1.mean_per_class": sum(per_class) / len(per_class)}


def read_templates(path: str | None) -> list[str]:
    """Return the sentences of a file, or granary's own. Raises UserError."""
    if path is None:
        return list(TEMPLATES)
    lines = [line.strip() for line in text_option(path, "templates").splitlines() if line.strip()]
    wrong = next((line for line in lines if "{}" not in line), None)
    if wrong or not lines:
        raise UserError(f"options.templates: {path} has a line without {{}}: {wrong!r}; give one sentence a line")
    return lines


def read_names(path: str | None, classes: Sequence[str]) -> list[str]:
    """Return the name of each class: as the file says, else the label with spaces for underscores. Raises UserError."""
    given = {} if path is None else _json(path)
    names = [given.get(label, label.replace("_", " ")) for label in classes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"options.names: two classes have the name {twice!r}; no sentence could tell them apart")
    return names


def _json(path: str) -> dict[str, str]:
    tree = json_option(path, "names")
    if not isinstance(tree, dict) or not all(isinstance(name, str) and name for name in tree.values()):
        raise UserError(f"options.names: {path} is not right; it must be an object, label -> name")
    return tree
