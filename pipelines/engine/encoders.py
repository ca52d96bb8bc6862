"""The encoders a recipe can name: those of curation, and models that `granary train` made."""

from __future__ import annotations

from granary.curation.encoders import planned
from granary.curation.encoders.planned import PlannedEncoder

LOADERS = {"granary": "granary.training.models.encoder:TrainedEncoder"}


def plan_encoder(text: str, device: str) -> PlannedEncoder:
    """Load the encoder that a recipe names before any work, see `granary.curation.encoders.planned.plan_encoder`."""
    return planned.plan_encoder(text, device, LOADERS)
