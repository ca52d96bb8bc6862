"""The frozen teacher of a distillation: backbone and heads of a DINOv2 training."""

from __future__ import annotations

from torch import nn

from granary.curation.errors import UserError
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.training import load_training


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
