"""Two pictures and two captions of the same words: text, image, group score (Thrush et al. 2022, arXiv 2204.03162)."""

from __future__ import annotations

from torch import Tensor

CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}  # of independent scores without ties


def winoground(scores: Tensor) -> dict[str, Tensor]:
    """Say which quads a model gets right: text, image and group, (Q,) bool each. Equal scores are wrong.

    Args:
        scores: (Q, 2, 2), [caption, picture]; caption k belongs to picture k.
    """
    own = scores.diagonal(dim1=1, dim2=2)  # (Q, 2): picture k with its caption
    text = (own > scores.flip(1).diagonal(dim1=1, dim2=2)).all(dim=1)  # than with the other caption
    image = (own > scores.flip(2).diagonal(dim1=1, dim2=2)).all(dim=1)  # than its caption with the other picture
    return {"text": text, "image": image, "group": text & image}


def ties(scores: Tensor) -> Tensor:
    """Say in which quads a picture scores both captions alike: (Q, 2, 2) -> (Q,) bool."""
    return (scores[:, 0] == scores[:, 1]).any(dim=1)
