"""RoB (arXiv 2301.09451) by loops: one picture, one pair of views, one prototype at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from slow_dino import slow_head, slow_sinkhorn
from slow_prototypes import slow_cosines, slow_softmax
from torch import Tensor

from granary.training.methods.dinov2 import DINOv2, Masked
from granary.training.methods.msn import MSN
from granary.training.methods.swav import SwAV


def slow_pairs(targets: Sequence[Sequence[Tensor]], logits: Sequence[Sequence[Tensor]], cross: bool = True) -> Tensor:
    """The mean over pairs of a target's and a student's view, and over pictures, of the cross-entropy.

    Args:
        targets: views of the teacher, for each picture q (K,).
        logits: views of the student, those of the teacher first, for each picture (K,) divided by the temperature.
        cross: whether the two views of a pair must be unlike.
    """
    terms = []
    for u, of_teacher in enumerate(targets):
        for v, of_student in enumerate(logits):
            if not cross or u != v:
                for q, z in zip(of_teacher, of_student, strict=True):
                    p = slow_softmax(z)
                    terms.append(-sum((q[k] * torch.log(p[k]) for k in range(len(q))), torch.zeros(())))
    pairs = len(terms) // len(targets[0])
    assert pairs == (len(targets) * len(logits) - len(targets) if cross else len(targets) * len(logits))
    return sum(terms, torch.zeros(())) / len(terms)


def slow_dinov2(
    student: DINOv2, teacher: DINOv2, whole: Tensor, shown: Tensor, local: Tensor, masked: Masked
) -> Tensor:
    """The cross-entropy of class tokens and, where patches are masked, of patches.

    Args:
        student: its learning branch is compared.
        teacher: its target branch, of which the centres are c.
        whole: (2B, 3, S, S) for the student.
        shown: the same for the teacher.
        local: (L * B, 3, s, s).
        masked: patches of the whole views.
    """
    options, batch = student.options, len(whole) // 2
    heat = options.teacher_temperature

    def balanced(rows: list[Tensor], name: str) -> list[Tensor]:
        if options.targets == "sinkhorn":
            return [row.float() for row in slow_sinkhorn(torch.stack(rows), heat)]
        centre: Tensor = teacher.centres[name].value  # type: ignore[assignment]
        return [slow_softmax((row - centre) / heat) for row in rows]

    with torch.no_grad():
        answers = [teacher.teacher(view[None]) for view in shown]
        rows = [slow_head(teacher.teacher_heads["dino"], tokens.cls[0]) for tokens in answers]
    goals = balanced(rows, "dino")
    head, masks = student.student_heads["dino"], masked.chosen
    seen = [
        student.student(view[None], masked=None if masks is None else masks[c : c + 1]) for c, view in enumerate(whole)
    ]
    tokens = [view.cls[0] for view in seen] + [student.student(view[None]).cls[0] for view in local]
    logits = [slow_head(head, token) / options.student_temperature for token in tokens]
    loss = slow_pairs([goals[:batch], goals[batch:]], [logits[v : v + batch] for v in range(0, len(logits), batch)])
    if masks is None:
        return loss
    places = [(c, n) for c in range(len(whole)) for n in range(masks.shape[1]) if masks[c, n]]
    name = "ibot" if "ibot" in teacher.teacher_heads else "dino"
    with torch.no_grad():
        said = [slow_head(teacher.teacher_heads[name], answers[c].patches[0, n]) for c, n in places]
    patch_goals = balanced(said, "ibot")
    patches = torch.zeros(())
    for (c, n), q in zip(places, patch_goals, strict=True):
        p = slow_softmax(slow_head(student.student_heads[name], seen[c].patches[0, n]) / options.student_temperature)
        patches = patches - (q * torch.log(p)).sum() / masks[c].sum() / len(whole)
    return loss + options.ibot * patches


def slow_swav(student: SwAV, teacher: SwAV, views: Sequence[Tensor], shown: Sequence[Tensor]) -> Tensor:
    """The swapped prediction of the teacher's codes.

    Args:
        student: whose prototypes the projections of `views` are compared to.
        teacher: whose prototypes those of `shown` are assigned to.
        views: V views (B, 3, s, s), the two large ones first.
        shown: the large ones for the teacher.
    """
    with torch.no_grad():
        scores = [_scores(teacher, view) for view in shown]
        codes = [slow_sinkhorn(torch.stack(view), teacher.options.epsilon) for view in scores]
    logits = [[row / student.options.temperature for row in _scores(student, view)] for view in views]
    return slow_pairs([[q.float() for q in view] for view in codes], logits)


def _scores(method: SwAV, view: Tensor) -> list[Tensor]:
    rows = [row / row.square().sum().sqrt() for row in method.projector(method.encoder(view).cls)]
    return [torch.stack([row @ unit for unit in method.prototypes.weight]) for row in rows]


def slow_msn(student: MSN, teacher: MSN, anchors: Sequence[Tensor], shown: Tensor) -> Tensor:
    """The cross-entropy of all anchors to the sharpened assignment of the whole view, without Sinkhorn.

    Args:
        student: whose prototypes the anchors are compared to.
        teacher: its target branch, with its own prototypes.
        anchors: V projections (B, D) of the student.
        shown: (B, 3, S, S) for the teacher.
    """
    options, goals = student.options, []
    with torch.no_grad():
        for row in teacher.target_projector(teacher.target(shown).cls):
            powers = slow_softmax(slow_cosines(row, teacher.prototypes) / options.temperature) ** (
                1 / options.sharpening
            )
            goals.append(powers / powers.sum())
    logits = [[slow_cosines(row, student.prototypes) / options.temperature for row in view] for view in anchors]
    return slow_pairs([goals], logits, cross=False)
