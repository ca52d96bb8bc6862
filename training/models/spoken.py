"""What all methods share that speak through a language model of `transformers` of what an image encoder sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from pydantic import Field
from torch import Tensor

from granary.curation.options import Options
from granary.curation.store import storage
from granary.training.data.tokenizer import read_tokenizer, train_tokenizer
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build
from granary.training.models.generative import Generative, cut_to
from granary.training.models.language import TINY, LanguageModel, load_language
from granary.training.models.registry import load_model

TOKENIZER = "tokenizer.json"  # a file of the training directory


class LanguageOptions(Options, frozen=True):
    """Which models see and speak, and what the words of a tiny one are."""

    encoder: str | None = Field(None, description="image encoder: any model; default: the recipe's, with its init")
    language: str = Field(
        TINY,
        description="language model: a folder saved by transformers, hf:ID, or tiny?width=128&depth=4&heads=4, a Qwen2 "
        "of random weights",
    )
    describe: str = Field("Describe the picture.", description="the question that a caption answers")
    tokenizer: str | None = Field(None, description="tokenizer.json of a tiny model; default: trained on the texts")
    vocabulary: int = Field(8192, ge=512, description="tokens at most of a tokenizer that is trained")
    corpus: int = Field(1_000_000, ge=1, description="texts at most that it is trained on")


class ByLanguageModel(Generative):
    """A generative model whose texts are those of a language model.

    Attributes:
        config: architecture of the image encoder.
        language: the language model.
    """

    config: BackboneConfig
    language: LanguageModel

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the training directory, by name."""
        return {TOKENIZER: self.language.tokenizer.json.encode()}

    @classmethod
    def untrained(cls, config: BackboneConfig, options: Options) -> Backbone:
        """Return the image encoder with initial weights."""
        assert isinstance(options, LanguageOptions)
        return build(config if options.encoder is None else load_model(options.encoder).config)

    @property
    def seen(self) -> BackboneConfig:
        """The architecture of the image encoder."""
        return self.config

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.language.vocabulary

    @property
    def end(self) -> int:
        """Number of the token that ends an answer."""
        return self.language.tokenizer.end

    def words(self, text: str) -> list[int]:
        """Return the tokens of a text and its end."""
        return [*self.language.tokenizer.plain(text), self.end]

    def spoken(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.language.tokenizer.text(tokens)

    def greedy(self, memory: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest next token again and again; see `Generative`."""
        rows = [cut_to(self.longest, prompt, ())[0] for prompt in prompts]
        said = self.likeliest(memory, rows, tokens)
        return [words[: self.longest - len(row)] for words, row in zip(said, rows, strict=True)]

    def likeliest(self, memory: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest tokens after prompts that are not too long, without their end."""
        return self.language.greedy(memory, prompts, tokens)


def begun_language(options: LanguageOptions, texts: Iterable[str], out: str) -> LanguageModel:
    """Return the language model to begin with.

    Args:
        options: that name it.
        texts: that the tokenizer of a tiny one is trained on, unless there is one.
        out: the training directory, with the tokenizer of an earlier session when a run goes on.
    """
    words = None
    if options.language.partition("?")[0] == TINY:
        earlier = storage.join(out, TOKENIZER)
        given = earlier if storage.exists(earlier) else options.tokenizer
        corpus = islice(chain([options.describe] * 2, texts), options.corpus)
        words = read_tokenizer(given) if given else train_tokenizer(corpus, options.vocabulary)
    return load_language(options.language, words)
