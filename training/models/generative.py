"""Models that say texts about a picture, a token at a time: `Generative`, their contract, and what follows from it.

A text is said after a prompt: what begins a text, and a question where there is one. Its log probability is the sum
over its tokens, the end of the text among them. What follows a token changes nothing of it, so texts are padded at
their ends and mixed in batches as one likes.
Shapes: B pictures, K picture tokens of width W, L tokens of a text, V tokens of the vocabulary.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from granary.training.data.conversations import IMAGE
from granary.training.models.backbone_config import BackboneConfig


class Generative(nn.Module, abc.ABC):
    """A picture and the tokens so far -> logits of the next token."""

    @property
    @abc.abstractmethod
    def seen(self) -> BackboneConfig:
        """The architecture of the image encoder: side, mean and deviation of its pictures."""

    @property
    @abc.abstractmethod
    def vocabulary(self) -> int:
        """V."""

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """Tokens of prompt and text at most."""

    @property
    @abc.abstractmethod
    def end(self) -> int:
        """Number of the token that ends a text."""

    @abc.abstractmethod
    def memory(self, pixels: Tensor) -> Tensor:
        """Return what the texts of normalised pictures are said about: (B, 3, S, S) -> (B, K, W)."""

    @abc.abstractmethod
    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each, (B, K, W), (B, L) int64 -> (B, L, V); none sees a later one."""

    @abc.abstractmethod
    def prompt(self, question: str | None) -> list[int]:
        """Return the one or more tokens that a description, or the answer to a question, is said after.

        A number below 0 is no token, but where the model puts the picture.
        """

    def later(self, question: str | None) -> list[int]:
        """Return what the second and later answers of a conversation are said after; by default what the first is."""
        return self.prompt(question)

    @abc.abstractmethod
    def words(self, text: str) -> list[int]:
        """Return the tokens of a text and its end."""

    @abc.abstractmethod
    def spoken(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without an end."""

    def greedy(self, memory: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest next token again and again, until the end of the text: the same words in any batch.

        Args:
            memory: (B, K, W).
            prompts: what each is said after.
            tokens: of a text at most.

        Returns:
            For each picture the tokens without prompt and end.
        """
        return greedy(self, memory, prompts, tokens)


def without_picture(template: str) -> str:
    """Return what the second and later answers of a conversation follow: a template without its picture."""
    before, _, after = template.partition(IMAGE)
    return before + after.lstrip()


def cut_to(longest: int, prompt: Sequence[int], words: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return prompt and words that fit together: words lose their ends, and a prompt too long all but `longest` - 1."""
    prompt = list(prompt)[: longest - 1]
    return prompt, list(words)[: longest - len(prompt)]


def padded(rows: Sequence[Sequence[int]], length: int, device: torch.device) -> Tensor:
    """Return rows of numbers as (B, length) int64, filled up with 0."""
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], dtype=torch.int64, device=device)


def word_loglikelihood(
    model: Generative, memory: Tensor, prompts: Sequence[Sequence[int]], words: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return the log probabilities of the words of each picture, and how many they are.

    Args:
        model: says them.
        memory: (B, K, W).
        prompts: what each is said after.
        words: B texts; what is beyond `longest` is cut off.

    Returns:
        (B,) float32, sums over the words, and (B,) int64.
    """
    framed = [cut_to(model.longest, *pair) for pair in zip(prompts, words, strict=True)]
    rows, before = [prompt + text for prompt, text in framed], [len(prompt) for prompt, _ in framed]
    tokens = padded(rows, max(map(len, rows)), memory.device)
    logits = model.next_logits(memory, tokens[:, :-1])
    of_next = logits.float().log_softmax(dim=2).gather(2, tokens[:, 1:, None].clamp(min=0))[..., 0]  # (B, L - 1)
    places = torch.arange(1, tokens.shape[1], device=tokens.device)[None]
    first, last = (torch.tensor(numbers, device=tokens.device)[:, None] for numbers in (before, [*map(len, rows)]))
    counted = (places >= first) & (places < last)
    return torch.where(counted, of_next, 0).sum(dim=1), counted.sum(dim=1)


def greedy(model: Generative, memory: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Return what `Generative.greedy` does, each token from all before it."""
    rows = [cut_to(model.longest, prompt, ())[0] for prompt in prompts]
    before, said = [len(row) for row in rows], list(range(len(rows)))
    for _ in range(tokens):
        said = [
            n for n in said if len(rows[n]) < model.longest and (len(rows[n]) == before[n] or rows[n][-1] != model.end)
        ]
        if not said:
            break
        lengths = torch.tensor([len(rows[n]) for n in said], device=memory.device)
        logits = model.next_logits(memory[said], padded([rows[n] for n in said], int(lengths.max()), memory.device))
        chosen = logits[torch.arange(len(said), device=memory.device), lengths - 1].argmax(dim=1)
        for n, token in zip(said, chosen.tolist(), strict=True):
            rows[n].append(token)
    texts = [row[first:] for row, first in zip(rows, before, strict=True)]
    return [text[:-1] if text and text[-1] == model.end else text for text in texts]
