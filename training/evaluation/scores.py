"""What a protocol returns, and what several protocols say of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, TypedDict

import torch
from pydantic import BeforeValidator
from torch import Tensor


class DeadLetter(TypedDict):
    """What could not be read, where, and why."""

    uri: str
    stage: str
    error: str
    message: str


def dead_letter(uri: str, error: str, message: str) -> DeadLetter:
    """Return the row of what cannot be decoded."""
    return {"uri": uri, "stage": "decode", "error": error, "message": message}


class Scores(dict[str, float | None]):
    """Metric -> value, with what a reader must know beside the numbers.

    Args:
        values: as `granary.training.evaluation.evaluate` prints them: `METRIC.detail` stands in the line of METRIC.
        notes: sentences.
        settings: what was decided while measuring, and what could not be read; plain data.
    """

    def __init__(
        self, values: Mapping[str, float | None], notes: Iterable[str] = (), settings: Mapping[str, object] = {}
    ) -> None:
        super().__init__(values)
        self.notes, self.settings = tuple(notes), dict(settings)


def _listed(value: object) -> object:
    """Take `10,20` and a single number for a list."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return [value] if isinstance(value, int | float) else value


Whole = Annotated[tuple[int, ...], BeforeValidator(_listed)]  # an option of whole numbers, written 10,20
Real = Annotated[tuple[float, ...], BeforeValidator(_listed)]
Words = Annotated[tuple[str, ...], BeforeValidator(_listed)]


def accuracies(predicted: Tensor, truth: Tensor, name: str = "accuracy") -> dict[str, float]:
    """Return the share of right predictions, and its mean over the classes that occur.

    Args:
        predicted, truth: (n,) int64 classes.
        name: of the metric.
    """
    right = (predicted == truth).double()
    per_class = [float(right[truth == number].mean()) for number in truth.unique().tolist()]
    mean = torch.tensor(per_class, dtype=torch.float64).mean()
    return {name: float(right.mean()), f"{name}.mean_per_class": float(mean)}
