"""Fine-tuning: all weights learn the labels for a few hundred steps, slower the lower the layer; then it is tested.

As BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377) fine-tune, but for the length. No picture is trained on that is
tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from pydantic import Field

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.training.data import shards
from granary.training.data.collate import on_device
from granary.training.data.drawn import ids_of, some, without
from granary.training.data.loader import BatchPlan, batches
from granary.training.evaluation.features import BATCH, dead_letters, extract, load
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores, accuracies
from granary.training.evaluation.tasks import PROBE, labelled, opened_sides
from granary.training.method import Moment
from granary.training.methods.supervised import Supervised, SupervisedOptions
from granary.training.models.backbone import Backbone
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.registry import resolved
from granary.training.schedules import warmed_cosine

STREAMS = 8


class FineTuneOptions(SplitOptions, frozen=True):
    """Options of fine-tuning."""

    steps: int = Field(300, ge=1, description="steps of AdamW")
    batch_size: int = Field(64, ge=1, description="pictures of a step")
    lr: float = Field(5e-4, gt=0, description="learning rate of the classifier, cosine to 0 after a tenth of warm-up")
    layer_decay: float = Field(0.75, gt=0, le=1, description="factor of the rate from one stage to that below")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="share of the picture's area in a training crop")
    out: str | None = Field(None, description="folder to write the fine-tuned model to; default: it is not kept")


def evaluate(measured: Measured, options: FineTuneOptions) -> Scores:
    """Fine-tune a model with a linear classifier on the training pictures, test it on the others.

    Returns:
        accuracy with `.mean_per_class`, `.chance`, `.loss` of the last step and counts.
    """
    if measured.dtype == "float16":
        raise UserError("dtype: float16 is not right: its gradients vanish; fine-tune in float32 or bfloat16")
    if options.out and storage.exists(storage.join(options.out, "config.json")):
        raise UserError(f"options.out: {options.out} has a model already; name a new folder")
    subject, device = load(measured), torch_device(measured.device)
    if not isinstance(subject, Backbone):
        raise UserError("model: pixels has no weights to fine-tune; give a training directory or hf:ID_OR_PATH")
    opened = list(opened_sides(measured, options.holdout, "fine-tune"))
    (train, _), (test, _) = opened
    apart = without(_first(train, measured.limit), ids_of(_first(test, measured.limit)).tolist())
    if not apart.count:
        raise UserError("split: training and test pictures are the same; fine-tune needs others to learn from")
    shares = shards.class_shares([apart, test], [1.0, 1.0])
    if len(shares) < 2:
        raise UserError(f"data: the labels of {measured.data} have fewer than two classes; fine-tune needs two")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(measured.seed)
        method, loss = tuned(subject, apart, shares, options, measured)
    found = extract(method.evaluated_model(), test, measured, list(shares))
    tested = labelled(found, test.path)
    with torch.no_grad():
        predicted = method.head(tested.last.to(device)).argmax(dim=1).cpu()
    if options.out:
        method.evaluated_model().save(options.out)
    scores: dict[str, float | None] = {**accuracies(predicted, tested.labels), "accuracy.loss": loss}
    scores |= {"accuracy.chance": 1 / len(shares), "accuracy.classes": len(shares)}
    scores |= {"accuracy.train": apart.count, "accuracy.test": len(tested.ids)}
    lost = min(train.count, measured.limit or train.count) - apart.count
    notes = [f"{lost:,} training pictures are test pictures too and were left out of training"] if lost else []
    sides = zip(("train", "test"), opened, strict=True)
    where = {name: {"data": dataset.path, "split": part} for name, (dataset, part) in sides}
    return Scores(scores, notes, {"model": resolved(measured.model), **where, "dead": dead_letters(found)})


PROTOCOL = Protocol(evaluate, FineTuneOptions, PROBE, BATCH)


def tuned(
    subject: Backbone, train: shards.Dataset, shares: Mapping[str, float], options: FineTuneOptions, measured: Measured
) -> tuple[Supervised, float]:
    """Return a model with a classifier after fine-tuning, in evaluation mode, and the loss of the last step.

    Torch's generator draws the classifier and dropped branches.

    Args:
        subject: what to start from, which stays as it is.
        train: pictures to learn.
        shares: of the classes, by name.
        options: see `FineTuneOptions`.
        measured: device, dtype and seed of order and crops.
    """
    chosen = SupervisedOptions(crop_scale=options.crop_scale, layer_decay=options.layer_decay)
    method, device = Supervised(subject.config, chosen, shares), torch_device(measured.device)
    method.encoder.load_state_dict(subject.state_dict())
    method.to(device)
    size = min(options.batch_size, train.count)
    columns, categories, streams = ("image", "label"), {"label": shares}, math.gcd(size, STREAMS)
    plan = BatchPlan([train], [1.0], method.views(), columns, categories, size, streams, seed=measured.seed)
    groups = method.parameter_groups()
    optimiser = torch.optim.AdamW([{"params": group.params} for group in groups], options.lr)
    loss = torch.zeros(())
    for step, batch in enumerate(batches(plan, range(options.steps), workers=0, place=partial(on_device, device))):
        rate = warmed_cosine(0.0, options.lr, 0.0, step, options.steps // 10, options.steps)
        for settings, group in zip(optimiser.param_groups, groups, strict=True):
            settings["lr"] = rate * group.lr_scale
            settings["weight_decay"] = options.weight_decay if group.decay else 0.0
        with torch.autocast(device.type, DTYPES[measured.dtype], enabled=measured.dtype != "float32"):
            loss = method(batch, Moment(step, options.steps, measured.seed))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return method.eval(), float(loss.detach())


def _first(dataset: shards.Dataset, limit: int | None) -> shards.Dataset:
    return dataset if limit is None else some(dataset, np.arange(dataset.count) < limit)
