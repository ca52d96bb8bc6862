"""An attentive probe: a learned query pools the tokens of a frozen model, a linear classifier reads what it gathered.

V-JEPA (Bardes et al. 2024, arXiv 2404.08471) and CAPI (Darcet et al. 2025, arXiv 2502.08769) measure models so, whose
class token or mean patch is not made to hold a picture. Here it is one cross-attention with layer norm before it,
without the residual and the MLP of V-JEPA's block. Shapes: B pictures, T tokens, D width, H heads, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.drawn import drawn
from granary.training.evaluation.features import ROOM, Features, encoded_by, load
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Real, Scores, accuracies
from granary.training.evaluation.site_features import has_class_token, tokens_of
from granary.training.evaluation.sites import sites_of
from granary.training.evaluation.subjects import Subject
from granary.training.evaluation.tasks import PROBE, train_and_test, without_test
from granary.training.models.attentive_probe import SIZE, AttentiveProbe
from granary.training.schedules import cosine

STOPPING = 0.1  # share of the training pictures that says which learning rate and which pass are best


class AttentiveOptions(SplitOptions, frozen=True):
    """Options of the attentive probe."""

    pictures: int = Field(5000, ge=10, description="training pictures at most, and test pictures, drawn by hash")
    heads: int = Field(4, ge=1, description="heads of the pooling; at most as many as divide the width")
    lrs: Real = Field((3e-4, 1e-3, 3e-3), min_length=1, description="learning rates of AdamW, cosine to 0")
    iterations: int = Field(1000, ge=1, description="steps of 128 pictures")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")


def evaluate(measured: Measured, options: AttentiveOptions) -> Scores:
    """Train the probe on all tokens of the training pictures, test it on the others.

    A tenth of the training pictures is not trained on and says which learning rate, after which pass, is the best.

    Returns:
        accuracy with `.mean_per_class`, `.chance`, `.validation`, `.learning_rate`, `.tokens` of a picture and counts.
    """
    subject = load(measured)

    def read(dataset: shards.Dataset, part: str | None, classes: Sequence[str]) -> Features:
        return _tokens(subject, drawn(dataset, options.pictures, measured.seed, "attentive"), measured, classes)

    task = without_test(train_and_test(measured, options.holdout, why="attentive", read=read), "attentive")
    device, shape = torch_device(measured.device), task.train.cls.shape
    best = trained(task.train.cls.to(device), task.train.labels.to(device), len(task.classes), options, measured.seed)
    predicted = best.probe.predicted(task.test.cls.to(device))
    scores: dict[str, float | None] = {**accuracies(predicted, task.test.labels), "accuracy.validation": best.score}
    scores |= {"accuracy.learning_rate": best.lr, "accuracy.tokens": shape[1], **task.counts()}
    return Scores(scores, task.notes, task.settings)


PROTOCOL = Protocol(evaluate, AttentiveOptions, PROBE, 64)


class Trained(NamedTuple):
    """A probe after its best pass: its accuracy and cross-entropy on the pictures not trained on, its rate."""

    probe: AttentiveProbe
    score: float
    loss: float
    lr: float


def trained(tokens: Tensor, labels: Tensor, classes: int, options: AttentiveOptions, seed: int) -> Trained:
    """Train a probe for each learning rate, all from the same first weights; return the best of all passes.

    Args:
        tokens: (n, T, D).
        labels: (n,) int64.
        classes: K.
        options: see `AttentiveOptions`.
        seed: of first weights, of what is not trained on, and of the order.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = AttentiveProbe(tokens.shape[2], classes, options.heads).to(tokens.device)
        order = torch.randperm(len(tokens)).to(tokens.device)
    stopping, taught = order.tensor_split([max(1, int(STOPPING * len(order)))])
    best: Trained | None = None
    for lr in options.lrs:
        probe = copy.deepcopy(first)
        optimiser = torch.optim.AdamW(probe.parameters(), lr, weight_decay=options.weight_decay)
        generator, size = torch.Generator().manual_seed(seed), min(SIZE, len(taught))
        rows = list[Tensor]()
        for step in range(options.iterations):
            if not rows:
                shuffled = torch.randperm(len(taught), generator=generator)
                rows = list(shuffled[: len(taught) // size * size].split(size))
            chosen = taught[rows.pop().to(taught.device)]
            optimiser.param_groups[0]["lr"] = cosine(lr, 0.0, step / options.iterations)
            optimiser.zero_grad()
            F.cross_entropy(probe(tokens[chosen]), labels[chosen]).backward()
            optimiser.step()
            if not rows or step + 1 == options.iterations:  # the end of a pass
                score, loss = _right(probe, tokens[stopping], labels[stopping])
                if best is None or (score, -loss) > (best.score, -best.loss):
                    best = Trained(copy.deepcopy(probe), score, loss, lr)
    assert best is not None
    return best


@torch.no_grad()
def _right(probe: AttentiveProbe, tokens: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return accuracy and cross-entropy."""
    logits = torch.cat([probe(part) for part in tokens.split(SIZE)])
    return float((logits.argmax(dim=1) == labels).double().mean()), float(F.cross_entropy(logits, labels))


def _tokens(subject: Subject, dataset: shards.Dataset, measured: Measured, classes: Sequence[str]) -> Features:
    """Return all tokens of the last site but registers, as `cls`: (n, T, D). Raises UserError for too many."""
    device, config = torch_device(measured.device), subject.config
    rows = min(dataset.count, measured.limit or dataset.count)

    def tokens(pixels: Tensor) -> tuple[Tensor, None]:
        (found,) = tokens_of(subject, pixels, sites_of(subject)[-1:], device, measured.dtype)
        patches = found.patches.float()
        every = torch.cat([found.cls.float()[:, None], patches], dim=1) if has_class_token(subject) else patches
        return every.cpu(), None

    side = config.img_size
    size = 4 * rows * tokens(torch.zeros(1, side, side, 3, dtype=torch.uint8))[0].numel()
    if size > ROOM:
        most = f"give at most {rows * ROOM // size:,}"
        raise UserError(f"options.pictures: {rows} is not right: their tokens take {size:,} bytes; {most}")
    return encoded_by(tokens, side, dataset, measured, classes)
