"""Published LLaVA and BLIP of `transformers` as generative models: unchanged, or with adapters that were trained here.

Weights are read from safetensors alone, and no code of a repository is run.
Shapes: B pictures, K vectors of a picture, W width, L tokens of a text, V tokens of the vocabulary.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from granary.curation.encoders.inference import UNLOADABLE, reason
from granary.curation.errors import UserError
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.generative import Generative, cut_to, without_picture
from granary.training.models.hub_backbone import described_config
from granary.training.models.hub_config import HubConfig
from granary.training.models.hub_files import files_of, folder_of
from granary.training.models.language import PICTURE, LanguageModel, LanguageTokenizer

if TYPE_CHECKING:  # takes seconds to import
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

TEMPLATE = "USER: <image>\n{question} ASSISTANT:"  # of LLaVA-1.5, for repositories without one
DESCRIBE = "Describe the picture in one sentence."
ARCHITECTURES = ("LlavaForConditionalGeneration", "BlipForConditionalGeneration")


class HubGenerative(Generative):
    """What both have in common.

    Args:
        network: of `transformers`.
        words: its tokenizer.
        processor: of `transformers`: its image processor, in its Pillow version, and the tokenizer that `words` are of.

    Attributes:
        SPEAKS: name of the part of the network that says texts, without its output.
    """

    SPEAKS: ClassVar[str]

    def __init__(self, network: Any, words: LanguageTokenizer, processor: Any) -> None:
        super().__init__()
        self.network, self.tokenizer, self.processor = network, words, processor
        vision, images = network.config.vision_config, processor.image_processor
        self.config = HubConfig(
            described_config(vision),
            vision.hidden_size,
            vision.image_size // vision.patch_size,
            vision.image_size,
            tuple(images.image_mean),
            tuple(images.image_std),
        )

    @property
    def images(self) -> BaseImageProcessor:
        """The image processor."""
        processor: BaseImageProcessor = self.processor.image_processor
        return processor

    @property
    @abc.abstractmethod
    def vision(self) -> PreTrainedModel:
        """The image encoder."""

    @property
    def files(self) -> dict[str, str]:
        """Configurations, tokenizer and processor by file name: all but the weights."""
        return files_of(self.network.config, self.network.generation_config, self.processor)

    @classmethod
    def of_files(cls, files: Mapping[str, str]) -> HubGenerative:
        """Return the model that `files` describes, with initial weights. Raises UserError where it is none."""
        from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

        with folder_of(files) as folder:
            try:
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                network = AutoModelForImageTextToText.from_config(config, trust_remote_code=False, dtype=torch.float32)
                network.generation_config = GenerationConfig.from_pretrained(folder)
                return _wrapped(network.eval(), folder)
            except UNLOADABLE as error:
                raise UserError(f"model: what is noted of its generator cannot be read ({reason(error)})") from error

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
        processor: of `transformers`.
        template: what an answer follows, with <image> and {question}.
    """

    SPEAKS = "model.language_model"

    def __init__(self, network: Any, words: LanguageTokenizer, processor: Any, template: str = TEMPLATE) -> None:
        super().__init__(network, words, processor)
        self.template = template
        self.language = LanguageModel(network, words)
        side = self.config.img_size
        with torch.inference_mode():
            zeros = torch.zeros(1, 3, side, side, dtype=network.dtype)
            self.vectors = self.memory(zeros).shape[1]

    @property
    def vision(self) -> PreTrainedModel:
        """The image encoder."""
        tower: PreTrainedModel = self.network.model.vision_tower
        return tower

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
        before, _, after = self._asked(self.template, question).partition("<image>")
        plain = self.tokenizer.plain
        return [*self.tokenizer.begin, *plain(before), PICTURE, *plain(after)]

    def later(self, question: str | None) -> list[int]:
        """Return the template with the question alone."""
        return self.tokenizer.plain(self._asked(without_picture(self.template), question))

    @staticmethod
    def _asked(template: str, question: str | None) -> str:
        return template.replace("{question}", DESCRIBE if question is None else question)


class HubBlip(HubGenerative):
    """A `BlipForConditionalGeneration`, which describes pictures; a question is what a description goes on from."""

    SPEAKS = "text_decoder.bert"

    @property
    def vision(self) -> PreTrainedModel:
        """The image encoder."""
        encoder: PreTrainedModel = self.network.vision_model
        return encoder

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
    from transformers import AutoModelForImageTextToText

    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
        network, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks weights, for example {missing[0]}")
        return _wrapped(network.eval(), name)
    except UNLOADABLE as error:
        raise UserError(
            f"model: hf:{name} cannot be loaded ({reason(error)}); a generator needs safetensors weights, a "
            "tokenizer.json and a preprocessor_config.json"
        ) from error


def _wrapped(network: Any, name: str) -> HubGenerative:
    """Return a network of a folder, or of an id on the Hub, with its processor. Raises what is in UNLOADABLE."""
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    tokenizer = processor.tokenizer
    if network.config.model_type == "blip":
        text, backend = network.config.text_config, getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("its tokenizer has no tokenizer.json")
        return HubBlip(network, LanguageTokenizer(backend.to_str(), [text.bos_token_id], text.sep_token_id), processor)
    words = LanguageTokenizer.of_transformers(tokenizer)
    return HubLlava(network, words, processor, _template(network, tokenizer))


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
