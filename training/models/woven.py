"""Texts in which pictures stand: each picture's vectors in the place of one token, any number of pictures a text.

Shapes: B texts, L tokens of width W, T pictures of all texts together, K vectors of a picture, M vectors of a text.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Woven(NamedTuple):
    """Texts with their pictures.

    Args:
        vectors: (B, M, W); behind the end of a text its last token is repeated.
        last: (B, L) where each token stands, of a picture its last vector.
    """

    vectors: Tensor
    last: Tensor


def weave(words: Tensor, pictures: Tensor, visual: Tensor) -> Woven:
    """Put the vectors of pictures into texts.

    Args:
        words: (B, L, W).
        pictures: (B, L) bool, the tokens that pictures stand in the place of; T of them, text by text.
        visual: (T, K, W), in that order.
    """
    (texts, length), count = pictures.shape, visual.shape[1]
    sizes = torch.where(pictures, count, 1)
    ends = sizes.cumsum(dim=1)
    places = torch.arange(int(ends[:, -1].max()), device=words.device).expand(texts, -1).contiguous()
    owner = torch.searchsorted(ends, places, right=True).clamp(max=length - 1)  # (B, M): the token of each place
    offset = (places - (ends - sizes).gather(1, owner)).clamp(max=count - 1)
    number = (pictures.flatten().cumsum(dim=0) - 1).view(texts, length).gather(1, owner)
    word = owner + torch.arange(texts, device=words.device)[:, None] * length
    source = torch.where(pictures.gather(1, owner), texts * length + number * count + offset, word)
    return Woven(torch.cat([words.flatten(0, 1), visual.flatten(0, 1)])[source], ends - 1)
