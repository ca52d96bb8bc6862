"""Masks of words, as BERT has them (Devlin et al. 2018, arXiv 1810.04805, section 3.1).

Of the chosen tokens 80 % become the mask token, 10 % any token, 10 % stay as they are: what is predicted may be wrong
wherever a token stands.
Shapes: L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MASKED, RANDOM = 0.8, 0.9  # up to here a chosen token is masked; up to here it is a random one


def mask_words(
    tokens: Sequence[int], share: float, mask: int, vocabulary: int, generator: np.random.Generator
) -> tuple[list[int], list[bool]]:
    """Return a text with some tokens masked, and which of them are to be predicted: one at least, where there is one.

    Args:
        tokens: (L,) of a text, without end and padding.
        share: of the tokens.
        mask: the token that stands for a masked one.
        vocabulary: tokens that there are.
        generator: of this text.
    """
    count = min(len(tokens), max(1, round(share * len(tokens))))
    chosen = np.zeros(len(tokens), bool)
    chosen[generator.permutation(len(tokens))[:count]] = True
    fates, others = generator.random(len(tokens)), generator.integers(0, vocabulary, len(tokens))
    shown = np.where(fates < MASKED, mask, np.where(fates < RANDOM, others, tokens))
    return np.where(chosen, shown, tokens).astype(int).tolist(), chosen.tolist()
