"""The frozen teacher of a distillation: backbone and heads of a DINOv2 training."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.checkpoint import Damaged, read_checkpoint
from granary.training.models.registry import load_model, model_folder, read_name

HEADS = "method/teacher_heads."
DIRECTIONS = "last_layer.parametrizations.weight.original1"  # (K, bottleneck)


def load_teacher(
    path: str, student: BackboneConfig, head: Callable[[int, int, int, int], nn.Module], patches: bool
) -> tuple[Backbone, nn.ModuleDict, dict[str, int]]:
    """Return backbone, heads ("dino", and "ibot" where it has one) and their prototypes of a teacher, frozen.

    Args:
        path: a training directory of DINOv2 or one of its checkpoints.
        student: of the student; patches and the pictures' normalisation must be the same.
        head: makes one from width, hidden width, bottleneck and prototypes.
        patches: whether a head for patches is wanted where there is one.

    Raises:
        UserError: no such model, one without heads, or one that does not fit.
    """
    if read_name(path).way != "path":
        raise UserError(f"options.teacher: {path} has no heads; give a training directory of method dinov2")
    folder = model_folder(path)
    backbone = load_model(folder)
    theirs = backbone.config
    for key in ("patch_size", "mean", "std"):
        if getattr(theirs, key) != getattr(student, key):
            raise UserError(
                f"model.{key}: {getattr(student, key)} is not right: that of the teacher, {getattr(theirs, key)}, is"
            )
    try:
        tensors, _ = read_checkpoint(folder)
    except Damaged as error:
        raise UserError(f"options.teacher: {folder} cannot be read ({error})") from error
    heads, prototypes = nn.ModuleDict(), {}
    for name in ("dino", "ibot") if patches else ("dino",):
        prefix = f"{HEADS}{name}."
        weights = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if weights:
            heads[name], prototypes[name] = _built(weights, head), len(weights[DIRECTIONS])
    if "dino" not in heads:
        raise UserError(f"options.teacher: {path} has no heads; give a training directory of method dinov2")
    return backbone.requires_grad_(False).eval(), heads.requires_grad_(False).eval(), prototypes


def _built(weights: dict[str, Tensor], head: Callable[[int, int, int, int], nn.Module]) -> nn.Module:
    """Return a head with these weights, whose shapes say its sizes."""
    hidden, width = weights["mlp.0.weight"].shape
    prototypes, bottleneck = weights[DIRECTIONS].shape
    built = head(width, hidden, bottleneck, prototypes)
    built.load_state_dict(weights)
    return built
