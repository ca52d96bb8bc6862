"""A generative model of a few weights: the next token hangs on the last one, its place and the picture's colours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from granary.training.data.tokenizer import TextTokenizer, train_tokenizer
from granary.training.models.generative import Generative
from granary.training.models.vit_config import ViTConfig

TEXTS = ["a red circle", "a blue square", "the green triangle on the left", "a circle", "what is it?", "two shapes"]


class Speaker(Generative):
    def __init__(self, longest: int = 16) -> None:
        super().__init__()
        self.config = ViTConfig(img_size=16, patch_size=8, width=8, depth=1, heads=2)
        self.tokenizer = TextTokenizer(train_tokenizer(TEXTS, 300), longest, causal=True)
        torch.manual_seed(0)
        self.last = nn.Embedding(self.vocabulary, 8)
        self.places = nn.Parameter(torch.randn(longest, 8))
        self.out = nn.Linear(8 + 3, self.vocabulary)

    @property
    def seen(self) -> ViTConfig:
        return self.config

    @property
    def vocabulary(self) -> int:
        return self.tokenizer.vocabulary

    @property
    def longest(self) -> int:
        return self.tokenizer.context

    @property
    def end(self) -> int:
        return self.tokenizer.end

    def memory(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3))[:, None]  # (B, 1, 3)

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        said = (self.last(tokens) + self.places[:length]).cumsum(dim=1)
        return self.out(torch.cat([said, memory.expand(-1, length, -1)], dim=2))

    def prompt(self, question: str | None) -> list[int]:
        asked = [] if question is None else self.tokenizer.plain(question)
        return [self.tokenizer.start, *asked]

    def words(self, text: str) -> list[int]:
        return [*self.tokenizer.plain(text), self.end]

    def spoken(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.text(tokens)
