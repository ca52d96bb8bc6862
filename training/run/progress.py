"""What a training has shown so far: its last numbers and scores, its best step, its alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from granary.training.models.checkpoint import Best, Facts


@dataclass
class Progress:
    """What checkpoints and run.json tell of a training besides its weights.

    Attributes:
        metrics: of the last step.
        probe: scores of the last probe.
        validation: the last numbers on the validation split.
        best: the step with the lowest validation loss, where that is kept.
        alarms: by kind, where each was first raised and why.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    probe: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    best: Best | None = None
    alarms: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, facts: Facts) -> Progress:
        """Return what a checkpoint tells; one of version 0.1 tells of no validation."""
        earlier = facts.get("validation", {}), facts.get("best")
        return cls(facts["metrics"], facts["probe"], *earlier, facts["alarms"])

    def facts(self) -> Facts:
        """Return what a checkpoint is to tell."""
        return Facts(**asdict(self))  # type: ignore[typeddict-item]

    def raised(self, step: int, symptoms: Mapping[str, str]) -> list[str]:
        """Note symptoms by kind; returns the alarms of the kinds that are new."""
        new = {kind: f"step {step}: {text}" for kind, text in symptoms.items() if kind not in self.alarms}
        self.alarms |= new
        return list(new.values())

    def improved(self, step: int) -> bool:
        """Say whether the last validation loss is the lowest so far, and note the step if so."""
        loss = self.validation["loss"]
        if not math.isfinite(loss) or (self.best is not None and loss >= self.best["loss"]):
            return False
        self.best = {"step": step, "loss": loss}
        return True
