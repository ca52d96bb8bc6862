"""Methods: one paper, one file, and one line in `METHODS`.

A method is a `torch.nn.Module` that holds everything it trains (student, teacher, heads) and says six things:

    Options         pydantic model of its own options (`options:` of the recipe); every field with a description
    MODEL           the architecture it wants where the recipe says nothing, for example {"class_token": False}
    columns         columns of the shards it needs: ("image",), with "label" or "captions" where it reads them
    evaluated       name of the submodule that is the model to use: a `VisionTransformer`, written into checkpoints
    __init__(config: ViTConfig, options: Options, classes: Mapping[str, float])
                                                 classes: label -> its share of the samples, where it reads labels
    views() -> {name: Crop}                      what the workers cut from a picture
    forward(batch, moment) -> {"loss": scalar, ...}
                                                 batch: what `training.data.loader.Parts` gives, on the device:
                                                 NAME (B, count, side, side, 3) uint8, NAME_draws
                                                 (B, count, 16), label, captions, id. Further scalars are logged.
                                                 "features" (B, D) and "teacher" (B, K) probabilities, detached, are
                                                 watched by the collapse alarm.
    after_step(moment)                           after the optimiser's step: the teacher's average, a clamp, or nothing
    parameter_groups() -> list of dict           usually `standard_groups(self)`

Two more are for a method that must know more of the data than its labels, as image-text models their tokenizer:

    learn(options, datasets, out) -> Any         class method: read it, before anything is written; given to __init__ in
                                                 the place of classes
    files -> {name: bytes}                       what is kept of it in the training directory, for `learn` to find again

There are no other hooks: the loop does the optimiser, schedules, precision, processes, checkpoints, logs, alarm and
probe for all methods; a loss is a pure function in the method's file, tested against an independent reference.
Randomness comes from `moment.generator(...)` or from torch's own generators, which the loop seeds for every step from
(seed, step, process), so that a resumed run goes on as if it had never stopped.

To add one: write training/methods/NAME.py (ijepa.py is the model to follow), add its line below, write
configs/train/NAME_tiny.yaml and tests/training/test_NAME.py. Views that need colours changed call
`granary.training.data.augment.photometric(pixels, batch["NAME_draws"][:, i], Photometric(...))` on the device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # the recipe is read, and --help printed, without torch
    from torch import Tensor, nn

METHODS = {  # name in a recipe -> module:class
    "ijepa": "granary.training.methods.ijepa:IJEPA",
    "clip": "granary.training.methods.clip:CLIP",
    "siglip": "granary.training.methods.clip:SigLIP",
    "dinov2": "granary.training.methods.dinov2:DINOv2",
    "supervised": "granary.training.methods.supervised:Supervised",
}


class Moment(NamedTuple):
    """Where a run is: step number `step` of `steps`, on process `rank`, in part `part` of an accumulated batch."""

    step: int
    steps: int
    seed: int
    rank: int = 0
    part: int = 0

    @property
    def progress(self) -> float:
        """The share of the steps that are done, 0 at the first."""
        return self.step / max(1, self.steps)

    def generator(self, *purpose: int, shared: bool = False) -> np.random.Generator:
        """Return the generator of this moment; a shared one is the same on all processes and parts."""
        place = () if shared else (self.rank, self.part)
        return np.random.default_rng([self.seed, self.step, *purpose, *place])


def load_method(name: str) -> Any:
    """Return the class of a method by its name in a recipe. Raises KeyError."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def standard_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups, with weight decay and (biases, norms, scales) without.

    A group may also have `lr_scale`, a factor of the learning rate, `start`, the first step that changes it, and
    `clip`, a name: gradients of groups of one name are clipped together.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain: list[Tensor] = [p for name, p in named if p.ndim < 2 or name.endswith(".bias")]
    decayed: list[Tensor] = [p for name, p in named if not (p.ndim < 2 or name.endswith(".bias"))]
    return [{"params": decayed, "decay": True}, {"params": plain, "decay": False}]
