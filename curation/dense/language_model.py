"""A causal language model of `transformers` and what it answers: no code of its folder is run, safetensors only."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from granary.curation.dense.recipe import Writer
from granary.curation.encoders.inference import UNLOADABLE, reason, torch_device
from granary.curation.errors import UserError

ENDINGS = (".json", ".safetensors", ".txt", ".model", ".jinja")  # of the files that decide what a model writes
BUSY = threading.Lock()  # one text engine at a time in a process: the model fills the device


@dataclass(frozen=True)
class Ask:
    """One thing asked of the model.

    Args:
        text: what the template's {text} is.
        seed: of its answer.
    """

    template: str
    text: str
    seed: int


class CausalModel(Protocol):
    """What is used of a causal language model of `transformers`."""

    config: PretrainedConfig
    generation_config: GenerationConfig
    device: torch.device

    def generate(
        self,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
    ) -> torch.Tensor:
        """Return (rows, tokens) of prompts and answers."""
        ...


def model_files(folder: str) -> list[str]:
    """Return the files of a model's folder that decide what it writes, sorted; raises UserError when it is none."""
    try:
        paths = sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(ENDINGS))
    except OSError as error:
        raise UserError(f"writer.model: {folder!r} is no folder ({error.strerror}); give that of a model") from error
    if not any(path.endswith("config.json") for path in paths):
        raise UserError(f"writer.model: {folder!r} holds no config.json; give the folder of a causal language model")
    return paths


class LanguageModel:
    """A model with its tokenizer.

    Args:
        tokenizer: pads on the left.
        model: for evaluation, on its device.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: CausalModel) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.room: int | None = getattr(model.config, "max_position_embeddings", None)  # tokens of prompt and answer

    def prompt(self, ask: Ask, numbers: Mapping[str, int], most: int) -> str:
        """Return the prompt of an ask, in the model's chat form where it has one.

        Args:
            ask: its text is halved until there is room for it.
            numbers: of the templates.
            most: new tokens that there must be room for.
        """
        text = ask.text
        while True:
            prompt = self._in_chat_form(ask.template.format(text=text, **numbers))
            if self.room is None or len(text) < 2 or self._length(prompt) + most <= self.room:
                return prompt
            half = text[: len(text) // 2]
            text = half.rpartition(" ")[0] or half

    def _in_chat_form(self, prompt: str) -> str:
        if not self.tokenizer.chat_template:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _length(self, prompt: str) -> int:
        return len(self.tokenizer([prompt], add_special_tokens=not self.tokenizer.chat_template)["input_ids"][0])

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str], seeds: Sequence[int], temperature: float, most: int) -> list[str]:
        """Return what the model writes after each prompt.

        Args:
            prompts: of one batch.
            seeds: of each answer.
            temperature: of the sampling.
            most: new tokens.
        """
        special = not self.tokenizer.chat_template  # which has them already
        batch = self.tokenizer(list(prompts), add_special_tokens=special, return_tensors="pt", padding=True)
        inputs = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.model.generation_config.eos_token_id,
        )
        drawn = LogitsProcessorList([Drawn(seeds, temperature)])
        tokens = self.model.generate(**inputs, generation_config=settings, logits_processor=drawn)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return list(self.tokenizer.batch_decode(new, skip_special_tokens=True))


@functools.lru_cache(maxsize=1)
def load(folder: str, device: str, dtype: str) -> LanguageModel:
    """Return the model of a folder; raises UserError when it cannot be loaded."""
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **options)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **options)
    except UNLOADABLE as error:
        raise UserError(
            f"writer.model: {folder!r} cannot be loaded ({reason(error)}); give a causal language model"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    torch.nn.Module.to(model, torch_device(device))
    return LanguageModel(tokenizer, model.eval())


class Drawn(LogitsProcessor):
    """Makes the greedy choice a draw from softmax(logits / temperature), each row from a generator of its own.

    argmax(logits / T + g) with g of the Gumbel distribution is such a draw (Gumbel 1954).

    Args:
        seeds: of the rows.
        temperature: T.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Add noise to (rows, vocabulary) logits."""
        uniform = torch.stack([torch.rand(scores.shape[1], generator=generator) for generator in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self.temperature + noise.to(scores.device)  # type: ignore[return-value]


@dataclass(frozen=True)
class Generator:
    """Asks a model, `batch` prompts at a time, the longest together; it is loaded once in a process.

    Args:
        options: of the recipe.
        most: new tokens of an answer.
    """

    options: Writer
    most: int

    def __call__(self, asks: Sequence[Ask], numbers: Mapping[str, int]) -> list[str]:
        """Return the answer to each ask.

        Args:
            numbers: of the templates.
        """
        if not asks:
            return []
        with BUSY:
            model = load(self.options.model, self.options.device, self.options.dtype)
            prompts = [model.prompt(ask, numbers, self.most) for ask in asks]
            order = sorted(range(len(asks)), key=lambda place: (-len(prompts[place]), place))
            answers = [""] * len(asks)
            for start in range(0, len(order), self.options.batch):
                batch = order[start : start + self.options.batch]
                written = model.answers(
                    [prompts[p] for p in batch], [asks[p].seed for p in batch], self.options.temperature, self.most
                )
                for place, text in zip(batch, written, strict=True):
                    answers[place] = text
        return answers
