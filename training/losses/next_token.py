"""The loss of models that say texts: cross-entropy of each next token, on one process or several.

Shapes: B texts, L tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from granary.training.losses.processes import gathered

IGNORED = -100  # a target that is not one


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over all tokens of all processes of -log p(token): each token counts alike, not each text.

    The mean over processes of what is returned, and of its gradients, is that of the whole batch on one; no target at
    all gives 0.

    Args:
        logits: (B, L, V) of the token that `targets` has in the same place.
        targets: (B, L) int64, `IGNORED` where none counts.
    """
    counts = gathered((targets != IGNORED).sum()[None])[0]
    share = counts.sum().clamp(min=1) / len(counts)
    flat = logits.flatten(0, 1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    return F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="sum") / share


def targets_until(tokens: Tensor, end: int, counted: Tensor) -> Tensor:
    """Return each next token as a target, up to the first `end` of a text, which is one.

    Args:
        tokens: (B, L) int64.
        end: number of the token that ends a text.
        counted: (B,) bool, texts that count.

    Returns:
        (B, L - 1) int64, `IGNORED` after the end and in texts that do not count.
    """
    after = ((tokens == end).cumsum(dim=1) > 0)[:, :-1]
    return tokens[:, 1:].masked_fill(after | ~counted[:, None], IGNORED)
