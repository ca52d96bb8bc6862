"""What a training method is: `Method`, the one contract between a paper's file and the loop.

There are no other hooks: the loop does the optimiser, schedules, precision, processes, checkpoints, logs, alarm and
probe for all methods; a loss is a pure function in `granary.training.losses`, tested against an independent reference.
Randomness comes from `moment.generator(...)` or from torch's own generators, which the loop seeds for every step from
(seed, step, process), so that a resumed run goes on as if it had never stopped.

To add one: write training/methods/NAME.py (ijepa.py is the model to follow), add its line to
training/methods/__init__.py, write configs/train/NAME_tiny.yaml and tests/training/methods/test_NAME.py. Views that
need colours changed call `granary.training.data.augment.photometric(pixels, batch["NAME_draws"][:, i],
Photometric(...))` on the device. What `learn` returns is kept in checkpoints, so that `load_training` builds the
modules again without any data; where JSON cannot hold it, write `remembered` and `recalled`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn

from granary.curation.options import Options as OptionGroup
from granary.training.data.clip_latents import ClipLook
from granary.training.data.collate import Part
from granary.training.data.crops import Crop, sample_generator
from granary.training.data.loader import BatchPlan
from granary.training.data.reads import Reads
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import CONFIGS, BackboneConfig


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

    def picture_generator(self, identity: str, purpose: int) -> np.random.Generator:
        """Return the generator of a picture, by its id: the same in any batch, on any process."""
        return sample_generator(self.seed, self.step, f"{purpose}/{identity}")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are treated alike.

    Args:
        params: the parameters.
        decay: whether weight decay applies.
        lr_scale: factor of the learning rate.
        start: the first step that changes them.
        clip: a name; gradients of the groups of one name are clipped together.
        scheduled: whether the learning rate follows its schedule; else it is the peak, from the first step to the last.
    """

    params: Sequence[Tensor]
    decay: bool
    lr_scale: float = 1.0
    start: int = 0
    clip: str = "gradient"
    scheduled: bool = True


def standard_groups(module: nn.Module, lr_scale: float = 1.0) -> list[ParameterGroup]:
    """Return the trained parameters in two groups: with weight decay, and (biases, norms, scales) without."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if not decays(name, p)]
    decayed = [p for name, p in named if decays(name, p)]
    return [ParameterGroup(decayed, True, lr_scale), ParameterGroup(plain, False, lr_scale)]


def layered_groups(backbone: Backbone, layer_decay: float) -> list[ParameterGroup]:
    """Return the trained parameters of a backbone by layer, the factor of whose learning rate decays downwards.

    Args:
        backbone: whose.
        layer_decay: the factor from one stage to that below, as BEiT (arXiv 2106.08254) and MAE fine-tune.
    """
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            key = decays(name, parameter), backbone.lr_scale(name, layer_decay)
            groups.setdefault(key, []).append(parameter)
    return [ParameterGroup(parameters, *key) for key, parameters in groups.items()]


def decays(name: str, parameter: Tensor) -> bool:
    """Say whether weight decay applies to a parameter: not to biases, norms and scales."""
    return parameter.ndim > 1 and not name.endswith(".bias")


class Method(nn.Module, abc.ABC):
    """A paper's way to train: a module that holds everything it trains (student, teacher, heads).

    Args:
        config: architecture of its backbones.
        options: its own options, an instance of `Options`.
        known: what `learn` returned.

    Attributes:
        Options: its own options (`options:` of the recipe); every field with a description.
        MODEL: the architecture it wants where the recipe says nothing, for example {"class_token": False}; a kind of
            backbone without such a field goes without.
        kinds: kinds of backbone that it can train, of `granary.training.models.backbone_config`.
        columns: columns of the shards it reads, where the options do not matter: "image", "label", "captions" or any.
        takes_features: whether it can do without pictures: a batch then has, in the place of views, features, (B, D)
            or of frames (B, F, P, D), 0 after the last, of
            the model to use, which is frozen and has the weights that made them.
        clips: how the model to use, which is frozen, looks at the clips of videos: a batch then has windows of their
            latents in the place of views; None for pictures. It may be that of an object.
        shardable: whether FSDP can share its weights out.
        evaluated: name of the submodule that is the model to use: a `Backbone` of `config`, written into checkpoints;
            it may be that of an object, where options decide it.
    """

    Options: ClassVar[type[OptionGroup]]
    MODEL: ClassVar[Mapping[str, object]] = {}
    kinds: ClassVar[tuple[str, ...]] = tuple(CONFIGS)
    columns: ClassVar[tuple[str, ...]] = ("image",)
    takes_features: ClassVar[bool] = False
    clips: ClipLook | None = None
    shardable: ClassVar[bool] = True
    evaluated: str
    config: BackboneConfig

    def __init__(self, config: BackboneConfig, options: OptionGroup, known: object) -> None:
        super().__init__()
        self.config, self.known = config, known

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Return what is read of every row; by default the class's `columns`.

        Args:
            options: of the method.
        """
        return Reads(cls.columns)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> object:
        """Return what must be known of the data before the modules can be built; it is done before any is written.

        By default that is label -> its share of the samples. Image-text models return their tokenizer.

        Args:
            config: architecture of its backbones.
            options: of the method.
            plan: the opened datasets, without crops; its `categories` have column -> class -> share.
            out: the training directory, with the `files` of an earlier session when a run goes on.
        """
        return plan.classes

    def look(self, plan: BatchPlan) -> None:
        """Take from the data what must be known of features, before the first step; by default nothing.

        Args:
            plan: of the training, with features in the place of views where there are any.
        """

    @property
    def remembered(self) -> object:
        """What `learn` returned, as JSON can hold it; checkpoints keep it. None where the weights say it."""
        return self.known

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> object:
        """Return what `learn` returned, from what was `remembered`: `load_training` builds the modules by it.

        Args:
            remembered: as it was written; None in checkpoints of version 0.1.
            weights: of all modules.
        """
        return remembered

    @classmethod
    def imagined(cls, options: OptionGroup) -> object:
        """Return what `learn` might return, without any data: by default two classes."""
        return {"0": 0.5, "1": 0.5}

    @classmethod
    def untrained(cls, config: BackboneConfig, options: OptionGroup) -> Backbone:
        """Return the model to use with its initial weights, without any data: the baseline `random:RECIPE`."""
        return cls(config, options, cls.imagined(options)).evaluated_model()

    @property
    def files(self) -> Mapping[str, bytes]:
        """What is kept in the training directory beside the checkpoints, name -> content, for `learn` to find again."""
        return {}

    @abc.abstractmethod
    def views(self) -> dict[str, Crop]:
        """Return what the workers cut from a picture, by name."""

    @abc.abstractmethod
    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, and what is watched.

        Args:
            batch: what `granary.training.data.loader.Parts` gives, on the device: for each view NAME (B, count, side,
                side, 3) uint8, NAME_draws (B, count, 16) in 0..1, and NAME_boxes where its `Crop` asks for them; what
                `reads` asks for, id, and row (B,) int64: the number of the row among all rows of the data, the same in
                every epoch and process.
            moment: where the run is.

        Returns:
            "loss", a scalar. Further scalars are logged; "features" (B, D), "projections" (B, K), what the loss
            compares, and "teacher" (B, K), probabilities, all detached, are watched by the collapse alarm.
        """

    def after_step(self, moment: Moment) -> None:
        """Follow the optimiser's step: move the teacher's average, clamp a parameter; by default nothing."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trained parameters; by default all weights, without decay of biases, norms and scales."""
        return standard_groups(self)

    def encoders(self) -> list[Backbone]:
        """Return the models that `init` of the recipe gives weights to; by default all."""
        return [module for module in self.modules() if isinstance(module, Backbone)]

    def evaluated_model(self) -> Backbone:
        """Return the submodule that is the model to use."""
        model = self.get_submodule(self.evaluated)
        assert isinstance(model, Backbone)
        return model

    def model_to_use(self, weights: Mapping[str, Tensor]) -> tuple[BackboneConfig, Mapping[str, Tensor]]:
        """Return architecture and weights of the model to use, which checkpoints hold.

        Args:
            weights: of all modules, whole also where processes share them.
        """
        prefix = f"{self.evaluated}."
        model = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        return self.evaluated_model().config, model

    def finish(self, checkpoint: str, out: str) -> None:
        """Write what a finished training gives beside its checkpoints; by default nothing.

        Args:
            checkpoint: folder of the one to use.
            out: the training directory.
        """

    @classmethod
    def of_earlier(cls, tree: Mapping[str, object]) -> Mapping[str, object]:
        """Return a recipe as it was written, perhaps for an earlier version, in the keys of now; by default as it is.

        Raises:
            ValueError: it says what can no longer be said.
        """
        return tree
