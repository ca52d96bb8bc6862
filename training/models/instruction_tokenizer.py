"""The instruction-guided tokenizer of pictures: a few vectors of each, which hang on what is asked.

VistaLLM (arXiv 2312.12423) after InstructBLIP's Q-Former (arXiv 2305.06500): learned queries and the words of the
instruction attend to one another, the queries also to the patches. The stage that VistaLLM's authors published has a
linear layer over all patches instead.
Shapes: T pictures, P patches of width D, L words, K vectors of width W.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from granary.curation.options import Options

Kind = Literal["instruction", "linear"]


class TokenizerOptions(Options, frozen=True):
    """The tokenizer of pictures."""

    kind: Kind = Field("instruction", description="instruction: queries that see the question; linear: every patch")
    queries: int = Field(32, ge=1, description="vectors of a picture")
    width: int = Field(768, ge=2, description="of queries and words")
    depth: int = Field(12, ge=1, description="layers")
    heads: int = Field(12, ge=1, description="heads of attention; they divide the width")
    every: int = Field(2, ge=1, description="queries attend to the patches in every so many layers, from the first on")


class InstructionTokenizer(nn.Module):
    """Patches of a picture and words -> (T, K, W).

    Args:
        options: sizes.
        vocabulary: of the words.
        width: D.
        out: W.
        longest: words at most.
    """

    def __init__(self, options: TokenizerOptions, vocabulary: int, width: int, out: int, longest: int) -> None:
        super().__init__()
        self.kind = options.kind
        if options.kind == "linear":
            self.out = nn.Linear(width, out)
            return
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        config = InstructBlipQFormerConfig(
            vocab_size=vocabulary,
            hidden_size=options.width,
            num_hidden_layers=options.depth,
            num_attention_heads=options.heads,
            intermediate_size=4 * options.width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=longest,
            cross_attention_frequency=options.every,
            encoder_hidden_size=width,
        )
        self.former: Any = InstructBlipQFormerModel(config)
        self.queries = nn.Parameter(torch.randn(options.queries, options.width) * config.initializer_range)
        self.out = nn.Linear(options.width, out)

    def forward(self, patches: Tensor, words: Tensor, known: Tensor) -> Tensor:
        """Return the vectors of pictures.

        Args:
            patches: (T, P, D).
            words: (T, L) int64, the instruction of each.
            known: (T, L) bool, which of these are words; the others change nothing.
        """
        if self.kind == "linear":
            return self.out(patches)
        queries = self.queries.expand(len(patches), -1, -1)
        seen = torch.cat([known.new_ones(queries.shape[:2]), known], dim=1).long()
        rows: Tensor = self.former(
            input_ids=words, attention_mask=seen, query_embeds=queries, encoder_hidden_states=patches
        ).last_hidden_state
        return self.out(rows[:, : queries.shape[1]])
