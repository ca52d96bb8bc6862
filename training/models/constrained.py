"""Greedy decoding after vectors, with the keys and values of earlier tokens kept, by a grammar where there is one.

Shapes: B texts of M vectors of width W, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from granary.training.models.language import LanguageModel

Allowed = Callable[[int, Sequence[int]], Sequence[int]]  # (text, its tokens so far) -> what may come next


def say(
    language: LanguageModel, vectors: Tensor, before: Sequence[int], tokens: int, allowed: Allowed | None = None
) -> list[list[int]]:
    """Return the likeliest next token again and again, until the end of each text.

    Args:
        language: says it.
        vectors: (B, M, W), what is said before.
        before: how many vectors at the beginning of each are none.
        tokens: of a text at most.
        allowed: what may come next; by default any token.

    Returns:
        For each text its tokens without the end.
    """
    end, device = language.tokenizer.end, vectors.device
    kept = torch.arange(vectors.shape[1], device=device)[None] >= torch.tensor(before, device=device)[:, None]
    said: list[list[int]] = [[] for _ in before]
    open_rows, cache, network = list(range(len(said))), None, language.network
    inputs: dict[str, Any] = {"inputs_embeds": vectors}
    for _ in range(tokens):
        places = (kept.long().cumsum(dim=1) - 1).clamp(min=0)[:, -next(iter(inputs.values())).shape[1] :]
        output: Any = network(
            **inputs, attention_mask=kept.long(), position_ids=places, past_key_values=cache, use_cache=True
        )
        logits, cache = output.logits[:, -1].float(), output.past_key_values
        if allowed is not None:
            _close(logits, open_rows, said, allowed)
        chosen = logits.argmax(dim=1).tolist()
        for row in open_rows:
            said[row].append(chosen[row])
        open_rows = [row for row in open_rows if chosen[row] != end]
        if not open_rows:
            break
        inputs = {"input_ids": torch.tensor(chosen, device=device)[:, None]}
        kept = torch.cat([kept, kept.new_ones(len(said), 1)], dim=1)
    return [row[:-1] if row and row[-1] == end else row for row in said]


def _close(logits: Tensor, rows: Sequence[int], said: Sequence[Sequence[int]], allowed: Allowed) -> None:
    """Make all tokens impossible that may not come next, in place."""
    closed = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for row in rows:
        closed[row] = True
        closed[row, torch.tensor(allowed(row, said[row]), device=logits.device)] = False
    logits.masked_fill_(closed, float("-inf"))
