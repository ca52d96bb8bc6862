"""Conversations as a generative model learns to answer in them: tokens, targets, loss.

Shapes: B conversations, L tokens, K vectors of a picture, W width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from granary.training.data.conversations import Conversation
from granary.training.losses.next_token import IGNORED, next_token_loss
from granary.training.losses.processes import gathered
from granary.training.models.generative import Generative, padded


def turns(model: Generative, conversation: Conversation, longest: int) -> tuple[list[int], list[int]]:
    """Return the tokens of a conversation, and 1 for each that is said by the model, else 0.

    Args:
        model: whose tokens.
        conversation: an empty one is asked for a description and given none.
        longest: tokens at most; what is beyond is cut off.
    """
    tokens, answers = list[int](), list[int]()
    for number, (question, answer) in enumerate(conversation):
        asked, said = model.later(question) if number else model.prompt(question), model.words(answer)
        tokens, answers = [*tokens, *asked, *said], [*answers, *[0] * len(asked), *[1] * len(said)]
    tokens = tokens or [*model.prompt(None), model.end]
    answers = answers or [0] * len(tokens)
    return tokens[:longest], answers[:longest]


def framed(model: Generative, conversations: Sequence[Conversation | None], longest: int) -> tuple[Tensor, Tensor]:
    """Return tokens (B, L) and targets (B, L), which are the tokens of answers and their ends, else `IGNORED`."""
    rows = [turns(model, chat or [], longest) for chat in conversations]
    most = max(len(tokens) for tokens, _ in rows)
    tokens, answers = (padded(some, most, torch.device("cpu")) for some in zip(*rows, strict=True))
    return tokens, torch.where(answers > 0, tokens, IGNORED)


def answers_loss(
    model: Generative, memory: Tensor, conversations: Sequence[Conversation | None], longest: int
) -> Tensor:
    """Return the next-token loss of the answers.

    Args:
        model: says them.
        memory: (B, K, W), of the picture of each.
        conversations: B of them; None where nothing is said.
        longest: tokens of a conversation at most, without those of the picture.
    """
    tokens, targets = (rows.to(memory.device) for rows in framed(model, conversations, longest))
    return next_token_loss(model.next_logits(memory, tokens[:, :-1]), targets[:, 1:])


def silent(said: Sequence[object | None], device: torch.device) -> Tensor:
    """Return of how many samples of all processes nothing is said, where None is nothing: a scalar, int64."""
    return gathered(torch.tensor([sum(one is None for one in said)], device=device))[0].sum()
