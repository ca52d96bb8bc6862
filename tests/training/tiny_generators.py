"""A small LLaVA and a small BLIP of transformers, made from configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_clip import tokenizer
from tiny_language import language_config
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}


def write_llava(folder: Path, chat_template: str | None = None, tied: bool = False) -> str:
    """Write a LLaVA as transformers does, its image token the last of the vocabulary."""
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.chat_template = chat_template
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config=language_config(len(words), tied),
        tie_word_embeddings=tied,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    sharpened(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def write_blip(folder: Path) -> str:
    """Write a BLIP as transformers does."""
    words, text = tokenizer(), {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    text |= {"intermediate_size": 32, "vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 0}
    text |= {"sep_token_id": 1, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config={**VISION, "initializer_range": 0.02})
    sharpened(BlipForConditionalGeneration(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def sharpened(model: Any) -> Any:
    """Make random weights large, so that answers differ from picture to picture."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.mul_(40 if "crossattention" in name else 6)
    return model.eval()
