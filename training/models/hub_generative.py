"""Published LLaVA and BLIP of `transformers` as generative models, unchanged.

Weights are read from safetensors alone, and no code of a repository is run.
Shapes: B pictures, K vectors of a picture, W width, L tokens of a text, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from granary.curation.encoders.inference import UNLOADABLE, reason
from granary.curation.errors import UserError
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.generative import Generative, cut_to
from granary.training.models.hub_backbone import described_config
from granary.training.models.hub_config import HubConfig
from granary.training.models.language import PICTURE, LanguageModel, LanguageTokenizer
from granary.training.models.preparation import read_preparation

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "USER: <image>\n{question} ASSISTANT:"  # of LLaVA-1.5, for repositories without one
DESCRIBE = "Describe the picture in one sentence."
ARCHITECTURES = ("LlavaForConditionalGeneration", "BlipForConditionalGeneration")


class HubGenerative(Generative):
    """What both have in common.

    Args:
        network: of `transformers`.
        words: its tokenizer.
        name: of its folder or on the Hub.
    """

    def __init__(self, network: Any, words: LanguageTokenizer, name: str) -> None:
        super().__init__()
        self.network, self.tokenizer = network, words
        vision, preparation = network.config.vision_config, read_preparation(name)
        self.config = HubConfig(
            described_config(vision),
            vision.hidden_size,
            vision.image_size // vision.patch_size,
            vision.image_size,
            preparation.mean,
            preparation.std,
        )

    @property
    def seen(self) -> BackboneConfig:
        """The architecture of the image encoder."""
        return self.config

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.network.config.text_config.vocab_size)

    @property
    def longest(self) -> int:
        """Tokens of a text at most, without those of the picture."""
        return int(self.network.config.text_config.max_position_embeddings)

    @property
    def end(self) -> int:
        """Number of the token that ends a text."""
        return self.tokenizer.end

    def words(self, text: str) -> list[int]:
        """Return the tokens of a text and its end."""
        return [*self.tokenizer.plain(text), self.end]

    def spoken(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.text(tokens)


class HubLlava(HubGenerative):
    """A `LlavaForConditionalGeneration`.

    Args:
        network: the model.
        words: its tokenizer.
        name: of its folder or on the Hub.
        template: what an answer follows, with <image> and {question}.
    """

    def __init__(self, network: Any, words: LanguageTokenizer, name: str, template: str = TEMPLATE) -> None:
        super().__init__(network, words, name)
        self.template = template
        self.language = LanguageModel(network, words)
        side = self.config.img_size
        with torch.inference_mode():
            zeros = torch.zeros(1, 3, side, side, dtype=network.dtype)
            self.vectors = self.memory(zeros).shape[1]

    @property
    def longest(self) -> int:
        """Tokens of a text at most, without those of the picture."""
        return super().longest - self.vectors + 1

    def memory(self, pixels: Tensor) -> Tensor:
        """Return the projected tokens of normalised pictures: (B, 3, S, S) -> (B, K, W)."""
        features: list[Tensor] = self.network.get_image_features(pixel_values=pixels).pooler_output
        return torch.stack(list(features))

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each: (B, K, W), (B, L) -> (B, L, V)."""
        return self.language(memory, tokens)

    def greedy(self, memory: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest next token again and again; see `Generative`."""
        return self.language.greedy(memory, [cut_to(self.longest, prompt, ())[0] for prompt in prompts], tokens)

    def prompt(self, question: str | None) -> list[int]:
        """Return the template with the picture and the question."""
        text = self.template.replace("{question}", DESCRIBE if question is None else question)
        before, _, after = text.partition("<image>")
        plain = self.tokenizer.plain
        return [*self.tokenizer.begin, *plain(before), PICTURE, *plain(after)]


class HubBlip(HubGenerative):
    """A `BlipForConditionalGeneration`, which describes pictures; a question is what a description goes on from."""

    def memory(self, pixels: Tensor) -> Tensor:
        """Return the tokens of normalised pictures: (B, 3, S, S) -> (B, K, W)."""
        tokens: Tensor = self.network.vision_model(pixel_values=pixels).last_hidden_state
        return tokens

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each: (B, K, W), (B, L) -> (B, L, V)."""
        logits: Tensor = self.network.text_decoder(input_ids=tokens, encoder_hidden_states=memory).logits
        return logits

    def prompt(self, question: str | None) -> list[int]:
        """Return what begins a text, and the question."""
        return [*self.tokenizer.begin, *([] if question is None else self.tokenizer.plain(question))]


def says_texts(name: str) -> bool:
    """Say whether a model of `transformers`, by its folder or id, is one of `ARCHITECTURES`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except UNLOADABLE:
        return False
    return bool(set(config.architectures or ()) & set(ARCHITECTURES))


def load_hub_generative(name: str, dtype: torch.dtype = torch.float32) -> HubGenerative:
    """Return a model of `transformers` that `says_texts`.

    Args:
        name: its folder, or its id on the Hub.
        dtype: of its weights.

    Raises:
        UserError: it lacks weights, as safetensors, or a tokenizer.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
        network, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks weights, for example {missing[0]}")
        return _wrapped(network.eval(), tokenizer, name)
    except UNLOADABLE as error:
        raise UserError(
            f"model: hf:{name} cannot be loaded ({reason(error)}); a generator needs safetensors weights, a "
            "tokenizer.json and a preprocessor_config.json"
        ) from error


def _wrapped(network: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> HubGenerative:
    if network.config.model_type == "blip":
        text, backend = network.config.text_config, getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("its tokenizer has no tokenizer.json")
        return HubBlip(network, LanguageTokenizer(backend.to_str(), [text.bos_token_id], text.sep_token_id), name)
    words = LanguageTokenizer.of_transformers(tokenizer)
    return HubLlava(network, words, name, _template(network, tokenizer))


def _template(network: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what an answer follows: as the tokenizer's own template says it, else as LLaVA-1.5 has it."""
    if tokenizer.chat_template is None:
        return TEMPLATE
    turn: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{question}"}]}
    text = str(tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))
    picture = str(tokenizer.convert_ids_to_tokens(network.config.image_token_id))
    if text.count(picture) != 1 or "{question}" not in text:
        raise ValueError("its chat template shows no picture with a question")
    return text.replace(picture, "<image>")
