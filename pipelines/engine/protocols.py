"""The evaluation protocols a recipe can name: those of training, and those of what stands above it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from granary.training.evaluation import evaluate
from granary.training.evaluation.protocols import registry

PROTOCOLS = {**registry.PROTOCOLS, "diffusion-classifier": "granary.synth.feedback.diffusion.bayes"}


class EvaluateRecipe(evaluate.EvaluateRecipe, frozen=True):
    """Evaluate a model by one or more protocols on the dataset of a run."""

    KNOWN: ClassVar[Mapping[str, str]] = PROTOCOLS

    protocols: list[str] = Field(min_length=1, description=f"what to measure: {', '.join(PROTOCOLS)}")
