"""RoB: a small model learns by a joint-embedding method one branch of which is replaced by a large, frozen teacher.

Duval et al. 2023 (arXiv 2301.09451), of which no code is public. The method is that of the teacher's own training: its
loss, its views and, where a recipe says nothing else, its options. Targets are made by the teacher's own heads,
prototypes and centre. The authors left out terms of the losses, but which is not known: here they are those that keep
a moving target from collapse, which one that stands still does not need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.losses.self_distillation import Centre
from granary.training.method import Method, Moment, ParameterGroup
from granary.training.methods import load_method
from granary.training.methods.dinov2 import DINOv2
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.teacher import Taught, TaughtOptions, Teacher
from granary.training.models.vit_config import ViTConfig
from granary.training.recipe import option_sentence

STILL = {"teacher": None, "temperature_warmup": 0, "queue": 0}  # options of methods that only a moving target needs


class Branches(NamedTuple):
    """The two branches of a method, by the names of its modules.

    Args:
        student: the backbone that is trained.
        heads: where the prototypes of its branch are.
        average: its moving average; where there is none the student.
        target: the modules of the target branch, which a teacher is left with.
        target_heads: where the prototypes of that branch are.
        collapse: options that keep the method from collapse, with values that do not.
    """

    student: str
    heads: str
    average: str
    target: tuple[str, ...]
    target_heads: str
    collapse: Mapping[str, float]


BASES = {
    "dinov2": Branches(
        student="student",
        heads="student_heads",
        average="teacher",
        target=("teacher", "teacher_heads", "centres"),
        target_heads="teacher_heads",
        collapse={"koleo": 0.0},
    ),
    "swav": Branches(
        student="encoder",
        heads="prototypes",
        average="encoder",
        target=("encoder", "projector", "prototypes"),
        target_heads="prototypes",
        collapse={},
    ),
    "msn": Branches(
        student="encoder",
        heads="prototypes",
        average="target",
        target=("target", "target_projector"),  # and its prototypes, a weight of no module
        target_heads="prototypes",
        collapse={"me_max": 0.0},
    ),
}


class RoBOptions(TaughtOptions, frozen=True, extra="allow"):
    """Options of RoB. All others are those of the teacher's method, and without them as in the teacher's training."""

    prototypes: Literal["copy_trainable", "copy_frozen", "fresh"] = Field(
        "copy_trainable", description="the student's: begin as the teacher's, stay the teacher's, or begin anew"
    )
    keep_anticollapse: bool = Field(
        False, description="keep what a moving target needs against collapse: KoLeo, me-max, a centre that follows"
    )
    average: bool = Field(False, description="evaluate the moving average of the student, where the method has one")


class RoB(Taught):
    """A method whose target branch is a teacher; what the method trains is the student."""

    Options = RoBOptions
    MODEL: ClassVar[Mapping[str, object]] = {"layer_scale": 0.0}

    def __init__(self, config: BackboneConfig, options: RoBOptions, known: object = None) -> None:
        super().__init__(config, options, known)
        self.teacher = Teacher.of(options, known)
        name = self.teacher.facts.method
        if name is None or name not in BASES:
            raise UserError(
                f"options.teacher: {options.teacher} is not right: it has no heads that RoB knows; give a training of "
                f"{', '.join(BASES)}, or take method simreg"
            )
        kind, self.branches = load_method(name), BASES[name]
        if config.kind not in kind.kinds:
            raise UserError(f"model.kind: {config.kind} is not right: {name} trains {' and '.join(kind.kinds)} alone")
        if isinstance(config, ViTConfig):
            config = replace(config, mask_token=bool(kind.MODEL.get("mask_token")))
        self.config, self.options = config, options
        given = base_options(kind, self.branches, options, self.teacher.facts.options)
        self.base = kind(config, given, None)
        if isinstance(self.base, DINOv2):
            _check_dinov2(self.base, self.teacher)
        self.teacher.keep(self.branches.target)
        self.teacher.method.options = given  # type: ignore[assignment]
        self.evaluated = f"base.{self.branches.average if options.average else self.branches.student}"
        self._take_prototypes()
        self.train()

    @torch.no_grad()
    def _take_prototypes(self) -> None:
        """Give the student the teacher's prototypes. Raises UserError where it cannot take them."""
        how, theirs = self.options.prototypes, _prototypes(self.teacher.method, self.branches.target_heads)
        for name, ours in _prototypes(self.base, self.branches.heads).items():
            shape, needed = tuple(ours.shape), tuple(theirs[name].shape) if name in theirs else ()
            if shape[:1] != needed[:1]:
                raise UserError(
                    f"options: the teacher has {needed[0] if needed else 'no'} prototypes where the student has "
                    f"{shape[0]}; leave their numbers to the teacher"
                )
            if how == "fresh":
                continue
            if shape != needed:
                raise UserError(
                    f"options.prototypes: {how} is not right: those of the student have width {shape[1]}, the "
                    f"teacher's {needed[1]}; leave the widths of heads to the teacher, or give fresh"
                )
            ours.copy_(theirs[name]).requires_grad_(ours.requires_grad and how == "copy_trainable")

    def train(self, mode: bool = True) -> RoB:
        """Set the mode of the student; the teacher stays in evaluation mode, but for a centre that is to follow it."""
        super().train(mode)
        for centre in self._centres():
            centre.train(mode)
        return self

    def views(self) -> dict[str, Crop]:
        """The views of the method."""
        return self.base.views()

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return what the method says of a batch whose targets are the teacher's.

        `kl` is the cross-entropy less the entropy of the targets, which is the least that it can be.
        """
        if moment.part == 0:
            for centre in self._centres():
                centre.forget()
        output: dict[str, Tensor] = self.base(batch, moment, self.targets)
        return output

    def targets(self, pixels: Tensor, *rest: object) -> object:
        """Return the teacher's targets, in the form of its method's.

        Args:
            pixels: (..., 3, S, S), normalised for the student.
            rest: what else the method makes its targets of.
        """
        targets: object = self.teacher.method.targets(self.teacher.shown(pixels, self.config), *rest)  # type: ignore[operator]
        return targets

    def after_step(self, moment: Moment) -> None:
        """Let the method follow. The teacher is left as it is, but for a centre that is to follow it."""
        self.base.after_step(moment)
        for centre in self._centres():
            centre.follow()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Those of the method, without frozen prototypes."""
        groups = self.base.parameter_groups()
        trained = [replace(group, params=[p for p in group.params if p.requires_grad]) for group in groups]
        return [group for group in trained if group.params]

    def encoders(self) -> list[Backbone]:
        """Those of the method, without the teacher's, whose weights are given."""
        return self.base.encoders()

    def _centres(self) -> Iterator[Centre]:
        """Yield the teacher's centres where they are to follow it."""
        if self.options.keep_anticollapse:
            yield from (module for module in self.teacher.modules() if isinstance(module, Centre))


def base_options(kind: type[Method], branches: Branches, options: RoBOptions, taught: Mapping[str, object]) -> Options:
    """Return the options of the student's method: those of the teacher's training but for those that RoB is given.

    Args:
        kind: the method.
        branches: of the method.
        options: of RoB.
        taught: of the teacher's training.

    Raises:
        UserError: the method has no such option, or a value is not right.
    """
    still = {key: value for key, value in STILL.items() if key in kind.Options.model_fields}
    dropped = {} if options.keep_anticollapse else branches.collapse
    try:
        return kind.Options.model_validate({**taught, **still, **dropped, **(options.model_extra or {})})
    except ValidationError as error:
        raise UserError("; ".join(option_sentence(problem) for problem in error.errors())) from None


def _prototypes(method: Method, heads: str) -> dict[str, Tensor]:
    """Return the parameters that prototypes are made of, by their names in the heads."""
    return {
        name.removeprefix(heads): parameter
        for name, parameter in method.named_parameters()
        if name.startswith(heads) and (heads == "prototypes" or ".last_layer." in name)
    }


def _check_dinov2(student: DINOv2, teacher: Teacher) -> None:
    """Raise UserError where a teacher of DINOv2 has no centre, knows no patches, or sees others than the student."""
    options, taught, side = student.options, teacher.facts.options, teacher.facts.side
    if options.targets == "centring" and (taught["targets"] != "centring" or taught["teacher"]):
        raise UserError(
            "options.targets: centring is not right: the teacher has no centre of what it says; give sinkhorn"
        )
    if not options.ibot:
        return
    if not taught["ibot"]:
        raise UserError(
            f"options.ibot: {options.ibot} is not right: the teacher has learned nothing of patches; give 0"
        )
    patch, grid = teacher.method.config.patch_size, student.global_size // student.config.patch_size
    if side // patch != grid:
        raise UserError(
            f"options.teacher_size: {side} is not right: a view has {grid} x {grid} patches for the student and "
            f"{side // patch} x {side // patch} for the teacher; give {grid * patch}"
        )
