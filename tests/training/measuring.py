"""Call a protocol with keyword arguments, whether all protocols share them or they are its own."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

from granary.training.evaluation.protocol import Measured, Protocol
from granary.training.evaluation.scores import Scores

SHARED = {field.name for field in dataclasses.fields(Measured)}


def measure(module: ModuleType, model: str, data: str, **given: Any) -> Scores:
    """Return the scores of the protocol of a module; what is given neither to all nor to it is an error."""
    protocol: Protocol[Any] = module.PROTOCOL
    shared = {name: value for name, value in given.items() if name in SHARED}
    own = {name: value for name, value in given.items() if name not in SHARED}
    measured = Measured(model, data, **{"batch": protocol.batch, **shared})
    return protocol.evaluate(measured, protocol.options.model_validate(own))
