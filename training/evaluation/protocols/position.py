"""Spatial specificity: can the place of a patch be told from its token?

A linear probe predicts the number of a patch from the patch token, one class for each patch (in the sense of Shekhar et
al. 2023, arXiv 2304.13089; the details are ours). Shapes: n pictures, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.training.data.drawn import drawn
from granary.training.evaluation.features import Features, encoded_by, load
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.layers import ridge_probe
from granary.training.evaluation.protocols.linear import PENALTIES
from granary.training.evaluation.scores import Real, Scores, Words
from granary.training.evaluation.site_features import sites_named, tokens_of
from granary.training.evaluation.sites import Site
from granary.training.evaluation.subjects import Subject
from granary.training.evaluation.tasks import PROBE, Task, opened_sides, task_of, without_test


class PositionOptions(SplitOptions, frozen=True):
    """Options of the probe of positions."""

    sites: Words = Field((), description="kinds of sites, as of the protocol layers; default: the last site alone")
    pictures: int = Field(300, ge=4, description="pictures at most to train on, and to test on, drawn by hash")
    penalties: Real = Field((1e2, 1e1, *PENALTIES), min_length=1, description="of ridge regression")
    validation: float = Field(0.1, gt=0, lt=1, description="share of the training ids that decides the penalty")


def evaluate(measured: Measured, options: PositionOptions) -> Scores:
    """Train the probe on the patches of training pictures, test it on those of others; labels are not read.

    Returns:
        accuracy at the last site, with `.chance`, one in as many as there are patches, `.penalty` and the numbers of
        pictures; for every other site that was asked for `LAYER.KIND` with its `.chance` and `.penalty`.
    """
    subject, device = load(measured), torch_device(measured.device)
    scores: dict[str, float | None] = {}
    *others, last = sites_named(subject, options.sites) if options.sites else sites_named(subject)[-1:]
    for site in (last, *others):
        task = _task(subject, measured, options.holdout, options.pictures, site)
        best, predicted = ridge_probe(patches_of(task), options.penalties, device, options.validation)
        count, name = task.test.cls.shape[1], str(site) if scores else "accuracy"
        right = predicted == torch.arange(count).repeat(len(task.test.ids))
        scores |= {name: float(right.double().mean()), f"{name}.chance": 1 / count, f"{name}.penalty": best.point}
        if name == "accuracy":
            scores |= {"accuracy.train": len(task.train.ids), "accuracy.test": len(task.test.ids)}
    return Scores(scores, task.notes, {**task.settings, "site": str(last)})


PROTOCOL = Protocol(evaluate, PositionOptions, PROBE, 64)


def patches_of(task: Task) -> Task:
    """Return a task of patches, each labelled by its number: (n, N, D) tokens become n * N features.

    All patches of a picture keep its id, so none of them is held out without the others.
    """

    def part(features: Features) -> Features:
        n, count, width = features.cls.shape
        ids = [name for name in features.ids for _ in range(count)]
        return Features(features.cls.reshape(n * count, 1, width), None, torch.arange(count).repeat(n), ids, [])

    classes = [str(number) for number in range(task.train.cls.shape[1])]
    return replace(task, train=part(task.train), test=part(task.test), classes=classes)


def _task(subject: Subject, measured: Measured, holdout: float, pictures: int, site: Site) -> Task:
    """Return training and test pictures, whose features are the patch tokens (n, N, D) at a site."""
    read = partial(_patches, subject, [site], torch_device(measured.device), measured.dtype)
    opened = list(opened_sides(measured, holdout, "position", needs=("image",)))
    some = [(drawn(dataset, pictures, measured.seed, "position"), part) for dataset, part in opened]
    both = [encoded_by(read, subject.config.img_size, dataset, measured) for dataset, _ in some]
    return without_test(task_of(measured, some, both, [], holdout), "position")


def _patches(
    subject: Subject, sites: Sequence[Site], device: torch.device, dtype: str, pixels: Tensor
) -> tuple[Tensor, None]:
    """Return the patch tokens (B, N, D) of pictures at the only site."""
    (tokens,) = tokens_of(subject, pixels, sites, device, dtype)
    return tokens.patches.float().cpu(), None
