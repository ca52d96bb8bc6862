"""Small language models and LLaVAs of transformers, made from configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from granary.training.data.tokenizer import END, START, train_tokenizer

TEXTS = ["what is it?", "a red circle", "a blue square", "is there a circle? yes", "USER: ASSISTANT: two shapes"]


def tiny_language(folder: Path, tied: bool = False, seed: int = 0) -> str:
    """Write a LLaMA with its tokenizer as transformers does; returns the folder."""
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer.from_str(train_tokenizer(TEXTS, 300))
    words = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=START, eos_token=END)
    torch.manual_seed(seed)
    network = LlamaForCausalLM(language_config(len(words), tied))
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def language_config(vocabulary: int, tied: bool = False) -> Any:
    """Return the configuration of a small LLaMA."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=96,
        tie_word_embeddings=tied,
    )
