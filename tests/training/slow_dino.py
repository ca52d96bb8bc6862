"""DINOv2's loss as the paper states it, by loops: one view, one patch, one pair at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from granary.training.methods.dinov2 import DINOv2


def slow_head(head: Any, token: Tensor) -> Tensor:
    """An MLP, unit length, prototypes of unit direction times their length: (D,) -> (K,)."""
    first, second, third = (head.mlp[number] for number in (0, 2, 4))
    x = first.weight @ token + first.bias
    for layer in (second, third):
        x = layer.weight @ (0.5 * x * (1 + torch.erf(x / 2**0.5))) + layer.bias
    x = x / x.square().sum().sqrt()
    weights = head.last_layer.parametrizations.weight
    return torch.stack(
        [g[0] * (v @ x) / v.square().sum().sqrt() for g, v in zip(weights.original0, weights.original1, strict=True)]
    )


def slow_sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """The algorithm of the paper, prototype by prototype, sample by sample, in float64."""
    q = torch.exp(logits.double() / temperature).T.clone()
    q = q / q.sum()
    for _ in range(rounds):
        for row in q:
            row /= row.sum() * len(q)
        for column in q.T:
            column /= column.sum() * q.shape[1]
    return (q * q.shape[1]).T


def slow_entropy(q: Tensor, logits: Tensor) -> Tensor:
    p = torch.exp(logits / 0.1) / torch.exp(logits / 0.1).sum()
    return -sum(q[k] * torch.log(p[k]) for k in range(len(q)))


def slow_loss(dino: DINOv2, whole: Tensor, local: Tensor, chosen: Tensor, temperature: float) -> dict[str, Tensor]:
    """The loss by loops over pairs of views and over patches."""
    crops, batch = len(whole), len(whole) // 2
    with torch.no_grad():
        answers = [dino.teacher(view[None]) for view in whole]
        cls = torch.stack([slow_head(dino.teacher_heads["dino"], tokens.cls[0]) for tokens in answers])
        places = [(crop, patch) for crop in range(crops) for patch in range(16) if chosen[crop, patch]]
        head = dino.teacher_heads["ibot"]
        patches = torch.stack([slow_head(head, answers[crop].patches[0, patch]) for crop, patch in places])
        wanted = slow_sinkhorn(cls, temperature).float()
        wanted_patches = slow_sinkhorn(patches, temperature).float()
    seen = [dino.student(whole[c : c + 1], masked=chosen[c : c + 1]) for c in range(crops)]
    views = [tokens.cls[0] for tokens in seen] + [dino.student(view[None]).cls[0] for view in local]
    logits = [slow_head(dino.student_heads["dino"], token) for token in views]
    terms: dict[tuple[int, int], list[Tensor]] = {}
    for teacher in range(2):
        for student in range(2 + len(local) // batch):
            if student != teacher:
                terms[teacher, student] = [
                    slow_entropy(wanted[teacher * batch + b], logits[student * batch + b]) for b in range(batch)
                ]
    assert len(terms) == 2 + 2 * (len(local) // batch)
    found = {"dino": sum(sum(own) / batch for own in terms.values()) / len(terms)}
    per_crop = []
    for crop in range(crops):
        own = [number for number, (c, _) in enumerate(places) if c == crop]
        entropies = [
            slow_entropy(
                wanted_patches[number], slow_head(dino.student_heads["ibot"], seen[crop].patches[0, places[number][1]])
            )
            for number in own
        ]
        per_crop.append(sum(entropies) / len(entropies) if own else torch.zeros(()))
    found["ibot"] = sum(per_crop) / crops
    spread = []
    for view in range(2):
        units = [views[view * batch + b] / views[view * batch + b].norm() for b in range(batch)]
        for i, one in enumerate(units):
            nearest = min((one - other).norm() for j, other in enumerate(units) if j != i)
            spread.append(-torch.log(nearest) / batch)
    found["koleo"] = sum(spread)
    found["loss"] = found["dino"] + found["ibot"] + 0.1 * found["koleo"]
    return found


class SlowCentred:
    """The losses of DINO (arXiv 2104.14294, algorithm 1) and iBOT (arXiv 2111.07832, equations 2 and 3) by loops.

    A centre follows what the teacher says of all views, one of pictures and one of patches, masked or not.
    """

    def __init__(self, prototypes: int) -> None:
        self.centres = {name: torch.zeros(prototypes) for name in ("cls", "patch")}
        self.answers: dict[str, list[Tensor]] = {}

    def losses(
        self, dino: DINOv2, whole: Tensor, local: Tensor, chosen: Tensor | None, temperature: float
    ) -> dict[str, Tensor]:
        """Return `dino`, the mean over pairs of unlike views, and with masks `ibot`, that over masked patches."""
        batch, teacher, student = len(whole) // 2, dino.teacher_heads["dino"], dino.student_heads["dino"]
        with torch.no_grad():
            answers = [dino.teacher(view[None]) for view in whole]
            said = {"cls": [slow_head(teacher, tokens.cls[0]) for tokens in answers], "patch": []}
            if chosen is not None:
                said["patch"] = [slow_head(teacher, token) for tokens in answers for token in tokens.patches[0]]
        self.answers = said
        masks = [None if chosen is None else chosen[c : c + 1] for c in range(len(whole))]
        seen = [dino.student(view[None], masked=mask) for view, mask in zip(whole, masks, strict=True)]
        views = [tokens.cls[0] for tokens in seen] + [dino.student(view[None]).cls[0] for view in local]
        logits = [slow_head(student, token) for token in views]
        total, terms = torch.zeros(()), 0
        for t in range(2):
            for s in range(len(views) // batch):
                if s == t:
                    continue  # never the same view
                for b in range(batch):
                    target = self.target("cls", said["cls"][t * batch + b], temperature)
                    total = total + slow_entropy(target, logits[s * batch + b]) / batch
                terms += 1
        found = {"dino": total / terms}
        if chosen is not None:
            found["ibot"] = torch.zeros(())
            for crop, mask in enumerate(chosen.tolist()):
                for patch, hidden in enumerate(mask):
                    if hidden:
                        target = self.target("patch", said["patch"][crop * len(mask) + patch], temperature)
                        entropy = slow_entropy(target, slow_head(student, seen[crop].patches[0, patch]))
                        found["ibot"] = found["ibot"] + entropy / sum(mask) / len(whole)
        return found

    def target(self, name: str, logits: Tensor, temperature: float) -> Tensor:
        """Return softmax((z - c) / t)."""
        scores = ((logits - self.centres[name]) / temperature).exp()
        return scores / scores.sum()

    def follow(self) -> None:
        """Move the centres, after the step: c <- 0.9 c + 0.1 of the mean answer."""
        for name, rows in self.answers.items():
            if rows:
                self.centres[name] = 0.9 * self.centres[name] + 0.1 * sum(rows) / len(rows)
