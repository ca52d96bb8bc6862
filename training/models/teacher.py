"""Frozen teachers: a finished training inside of another, whose checkpoints then hold its weights too.

Shapes: N pictures or views of pictures, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import normalised
from granary.training.data.loader import BatchPlan
from granary.training.method import Method
from granary.training.methods import METHODS, load_method
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, config_of
from granary.training.models.build import build
from granary.training.models.training import BackboneAlone, load_training


class TaughtOptions(Options, frozen=True):
    """Which teacher, and how large it sees pictures."""

    teacher: str = Field(description="model that teaches, frozen: a training directory, a checkpoint or hf:ID")
    teacher_size: int | None = Field(None, ge=1, description="pixels of a side that it sees; default as it was trained")


class TeacherFacts(NamedTuple):
    """What builds a teacher without its training: `Teacher.facts`, as checkpoints keep it."""

    method: str | None
    config: Mapping[str, object]
    options: Mapping[str, object]
    known: object
    side: int

    def initial(self) -> Method:
        """Return the teacher's method with initial weights; where it has none its backbone alone."""
        config = config_of(self.config)
        if self.method is None:
            return BackboneAlone(build(config))
        kind = load_method(self.method)
        return kind(config, kind.Options.model_validate(self.options), kind.recalled(self.known, {}))


class Teacher(nn.Module):
    """A method that has been trained: never changed, always in evaluation mode.

    Args:
        method: of the teacher.
        side: pixels of a side that it sees.

    Attributes:
        facts: what builds it again.
    """

    def __init__(self, method: Method, side: int) -> None:
        super().__init__()
        options: Options = getattr(method, "options", Options())
        self.facts = TeacherFacts(
            method_name(method), asdict(method.config), options.model_dump(mode="json"), method.remembered, side
        )
        self.method = method.requires_grad_(False)
        self.eval()

    @classmethod
    def of(cls, options: TaughtOptions, known: object, alone: bool = False) -> Self:
        """Return the teacher that options name or, of a training that is loaded again, that of which facts are known.

        Args:
            options: of the method that is taught.
            known: see `Method`.
            alone: whether the model to use is all that is wanted of it.

        Raises:
            UserError: there is no such training, or it cannot see pictures of that size.
        """
        if isinstance(known, TeacherFacts):
            return cls(known.initial(), known.side)
        method = load_training(options.teacher)
        large = next(iter(method.views().values()), None)
        side = options.teacher_size or (method.config.img_size if large is None else large.side)
        if method.config.kind == "vit" and side % method.config.patch_size:
            raise UserError(
                f"options.teacher_size: {side} is not right: it must be a multiple of the teacher's patch_size, "
                f"{method.config.patch_size}"
            )
        return cls(BackboneAlone(method.evaluated_model()) if alone else method, side)

    def keep(self, modules: Collection[str]) -> None:
        """Forget all parts of the method but some, by name."""
        for name, _ in list(self.method.named_children()):
            if name not in modules:
                delattr(self.method, name)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def shown(self, pixels: Tensor, student: BackboneConfig) -> Tensor:
        """Return pictures as the teacher's training showed them: of its size, normalised as there.

        Args:
            pixels: (..., 3, S, S), normalised for the student.
            student: its architecture.
        """
        teacher, flat = self.method.config, pixels.flatten(0, -4)
        if (teacher.mean, teacher.std) != (student.mean, student.std):
            shape = (1, 3, 1, 1)
            unit = flat * flat.new_tensor(student.std).view(shape) + flat.new_tensor(student.mean).view(shape)
            flat = normalised(unit, teacher.mean, teacher.std)
        if flat.shape[2] != self.facts.side:
            flat = F.interpolate(flat, (self.facts.side, self.facts.side), mode="bicubic", antialias=True)
        return flat.unflatten(0, pixels.shape[:-3])

    @torch.no_grad()
    def features(self, pixels: Tensor, student: BackboneConfig) -> Tensor:
        """Return the features (N, D) that the model to use has of pictures (N, 3, S, S), normalised for the student."""
        features: Tensor = self.method.evaluated_model()(self.shown(pixels, student)).cls
        return features


class Taught(Method):
    """A method with a frozen teacher."""

    teacher: Teacher

    @classmethod
    def learn(cls, config: BackboneConfig, options: Options, plan: BatchPlan, out: str) -> object:
        """Return nothing: what must be known is the teacher's."""
        return None

    @classmethod
    def imagined(cls, options: Options) -> object:
        """Return nothing, as `learn`."""
        return None

    @property
    def remembered(self) -> object:
        """The facts of the teacher."""
        return self.teacher.facts._asdict()

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> object:
        """Return the facts of the teacher, whose weights are among those of the training."""
        facts: Any = remembered
        return TeacherFacts(**facts)


def projector_of(method: Method) -> nn.Module | None:
    """Return the projector behind the model that is evaluated, that of the target where this is it; None for none."""
    projector = getattr(method, "target_projector" if method.evaluated == "target" else "projector", None)
    return projector if isinstance(projector, nn.Module) else None


def method_name(method: Method) -> str | None:
    """Return the name of a method in a recipe; None where it has none."""
    place = f"{type(method).__module__}:{type(method).__name__}"
    return next((name for name, written in METHODS.items() if written == place), None)


def load_teacher(path: str, student: BackboneConfig, patches: bool) -> tuple[Backbone, nn.ModuleDict]:
    """Return backbone and heads ("dino", and "ibot" where it has one) of a teacher, frozen.

    Args:
        path: a training of DINOv2, see `load_training`.
        student: of the student; patches and the pictures' normalisation must be the same.
        patches: whether a head for patches is wanted where there is one.

    Raises:
        UserError: no such model, one without heads, or one that does not fit.
    """
    taught = load_training(path).requires_grad_(False)
    heads = getattr(taught, "teacher_heads", None)
    if not isinstance(heads, nn.ModuleDict):
        raise UserError(f"options.teacher: {path} has no heads; give a training directory of method dinov2")
    backbone = taught.evaluated_model()
    for key in ("patch_size", "mean", "std"):
        theirs, ours = getattr(backbone.config, key), getattr(student, key)
        if theirs != ours:
            raise UserError(f"model.{key}: {ours} is not right: that of the teacher, {theirs}, is")
    return backbone, nn.ModuleDict({name: head for name, head in heads.items() if patches or name == "dino"})
