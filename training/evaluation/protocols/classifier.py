"""What the classifier of a training is worth on pictures that it was not trained on: nothing is fitted here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.data import shards
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.features import Features, dead_letters, encoded_by, load_whole
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.scores import Scores, accuracies
from granary.training.evaluation.tasks import labelled
from granary.training.methods.predictor_tuning import PredictorTuning
from granary.training.methods.supervised import Supervised
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.registry import resolved


class Classified(NamedTuple):
    """What the classifier of a training says of the labelled pictures of a split.

    Args:
        logits: features (n, 1, C) with labels and ids, of pictures whose class the training knows.
        classes: C names.
        dataset: of the pictures.
        notes, settings: as in `Scores`.
    """

    logits: Features
    classes: list[str]
    dataset: shards.Dataset
    notes: list[str]
    settings: Mapping[str, object]


def evaluate(measured: Measured, options: SplitOptions) -> Scores:
    """Classify the labelled pictures of a split, the middle of each, by the training's own head.

    Returns:
        accuracy with `.mean_per_class`, `.chance`, `.classes` that the training knows, and `.test`, the pictures; those
        of other classes are left out.
    """
    said = classified(measured, options.holdout)
    known, classes = said.logits, said.classes
    scores = {**accuracies(known.cls[:, 0].argmax(dim=1), known.labels), "accuracy.chance": 1 / len(classes)}
    scores |= {"accuracy.classes": len(classes), "accuracy.test": len(known.ids)}
    return Scores(scores, said.notes, said.settings)


PROTOCOL = Protocol(evaluate, SplitOptions, ("split", "batch", "limit"), 256)


def classified(measured: Measured, holdout: float, instead: str = "linear, which trains one") -> Classified:
    """Return what the training's own head says of the labelled pictures of a split, the middle of each.

    Args:
        measured: the training, the data and how.
        holdout: share of the ids that is test, for shards without a column split.
        instead: what to ask for where there is no classifier.

    Raises:
        UserError: there is no classifier, no split or no label.
    """
    model, device = _classifier(measured, instead), torch_device(measured.device)
    split = measured.split or "test"
    needs, classes = ("image", "label"), list(model.classes)
    dataset = shards.open_dataset(measured.data, needs, split, holdout, "classifier", measured.columns)

    @torch.inference_mode()
    def logits(pixels: Tensor) -> tuple[Tensor, None]:
        unit = normalised(to_unit(pixels.to(device)), model.config.mean, model.config.std)
        with torch.autocast(device.type, DTYPES[measured.dtype], enabled=measured.dtype != "float32"):
            return model.logits(unit).float().cpu()[:, None], None

    found = encoded_by(logits, model.config.img_size, dataset, measured, classes)
    known = labelled(found, dataset.path)
    left = len(found.ids) - len(known.ids)
    notes = [f"{left:,} pictures have no label, or one that the training does not know"] if left else []
    settings = {"model": resolved(measured.model), "data": dataset.path, "split": split, "dead": dead_letters(found)}
    return Classified(known, classes, dataset, notes, settings)


def _classifier(measured: Measured, instead: str) -> Supervised | PredictorTuning:
    """Return the training to measure. Raises UserError where it has no classifier."""
    model = load_whole(measured)
    if not isinstance(model, Supervised | PredictorTuning):
        raise UserError(
            f"model: {measured.model} has no classifier; give a training of supervised or predictor_tuning, or ask for "
            f"{instead}"
        )
    return model
