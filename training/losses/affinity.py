"""Distillation of image-text models by affinities: the student's softmaxes over a batch follow the teacher's.

Wu et al. 2023 (TinyCLIP, arXiv 2309.12314, section 3.1); Yang et al. 2023 (CLIP-KD, arXiv 2307.12732), the relational
loss. Shapes: N pairs of a batch over all processes, n of them on this one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from granary.training.losses.contrastive import Pairs


def affinity_loss(student: Pairs, teacher: Pairs, scale: Tensor, teacher_scale: Tensor) -> Tensor:
    """Return the mean of KL(teacher || student) of the softmaxes over texts, and over images: 0 where they are equal.

    Hidden columns take no part; rows without a caption do not count. The mean over processes is that of the batch.

    Args:
        student, teacher: their pairs, of the same samples in the same places; their dimensions may differ.
        scale, teacher_scale: alpha of each, (1,): logits are exp(alpha) S.
    """
    matches, everyone = student.matches, torch.arange(len(student.keys), device=student.keys.device)
    local, hidden, terms = matches.local, matches.hidden(everyone), []
    with torch.autocast(student.images.device.type, enabled=False):
        for side, other in (("images", "texts"), ("texts", "images")):
            logs = []
            for pairs, alpha in ((student, scale), (teacher, teacher_scale)):
                logits = alpha.exp() * (getattr(pairs, side)[local] @ getattr(pairs, other).T)  # (n, N)
                logs.append(logits.masked_fill(hidden, -math.inf).log_softmax(dim=1))
            surprise = (logs[1] - logs[0]).masked_fill(hidden, 0)
            terms.append((logs[1].exp() * surprise).sum(dim=1))
    return matches.mean(terms[0] + terms[1]) / 2
