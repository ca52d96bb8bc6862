"""The options of guidance; this module loads no heavy library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from granary.curation.options import Options

Criterion = Literal["loss", "entropy", "hardness"]
Rule = Literal["normalised", "score"]


class GuidanceOptions(Options, frozen=True):
    """How the classifier's criterion steers the denoising; `Feedback` carries it out."""

    criterion: Criterion = Field("entropy", description="what is raised: loss, entropy or hardness")
    omega: float = Field(
        0.03,
        allow_inf_nan=False,
        description="feedback scale: 0 is the plain pipeline to the bit, below 0 lowers the criterion",
    )
    rule: Rule = Field(
        "normalised",
        description="normalised: a step of omega times the sample's own length (as released); score: the gradient "
        "times omega, added to the score",
    )
    every: int = Field(5, ge=1, description="feedback at every k-th denoising step, the first included")
    start: float = Field(0.0, ge=0, le=1, description="fraction of the steps before which there is no feedback")
    stop: float = Field(1.0, ge=0, le=1, description="fraction of the steps from which there is no feedback")
    mix: bool | None = Field(
        None,
        description="show the classifier s x0 + (1 - s) z, s = sqrt(1 - abar), instead of the estimate x0; default: "
        "true for the normalised rule (as released), false for the score rule",
    )
    rescale: Literal["minmax", "clamp"] = Field(
        "minmax", description="how an estimate becomes a picture in 0..1: by its extrema, as released, or by cutting"
    )
    clip: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="longest gradient of a sample in the score rule; default: any"
    )
    checkpoint: bool = Field(False, description="recompute activations in the backward pass: less memory, more time")
    observe: bool = Field(False, description="with omega 0, note the criterion along the steps all the same")

    @model_validator(mode="after")
    def _consistent(self) -> GuidanceOptions:
        if self.start >= self.stop:
            raise ValueError(f"start is {self.start} and stop {self.stop}: start must come before stop")
        if self.clip is not None and self.rule == "normalised":
            raise ValueError("clip has no effect on the normalised rule, whose steps have one length: use rule score")
        return self

    @property
    def mixes(self) -> bool:
        """Whether the classifier sees the mix."""
        return self.rule == "normalised" if self.mix is None else self.mix

    def acts(self, index: int, total: int) -> bool:
        """Return whether step `index` of `total` gets feedback."""
        return index % self.every == 0 and self.start * total <= index < self.stop * total
