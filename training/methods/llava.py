"""LLaVA and Frozen: a language model that is shown a picture (arXiv 2304.08485, 2310.03744; 2106.13884).

The tokens of an image encoder, projected into the space of words, stand in the place of a word of the question. The
loss is that of the answers' tokens alone. LLaVA freezes the encoder and tunes the language model, whole or by low-rank
adapters (`tuning`), after a training of the projector alone (`tuning frozen`); Frozen (`projector prefix`,
`train_encoder true`, `tuning frozen`) trains the encoder for a language model that never changes.
Shapes: B pictures, K vectors of a picture, W width of a word, L tokens of a text, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.conversations import IMAGE, Column, draw_conversations, spoken_corpus
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.data.reads import Reads
from granary.training.data.tokenizer import train_tokenizer
from granary.training.method import Method, Moment
from granary.training.models.answers import answers_loss, silent
from granary.training.models.backbone import Backbone, Tokens
from granary.training.models.backbone_config import BackboneConfig, config_of
from granary.training.models.build import build
from granary.training.models.generative import without_picture
from granary.training.models.language import PICTURE, TINY, LanguageModel, load_language
from granary.training.models.lora import Lora, adapt_language
from granary.training.models.registry import load_model
from granary.training.models.spoken import ByLanguageModel, LanguageOptions, begun_language
from granary.training.models.training import load_training
from granary.training.models.visual_projector import Projection, VisualProjector
from granary.training.models.vit import VisionTransformer


class SpeakingOptions(LanguageOptions, frozen=True):
    """Options of methods that teach a language model to speak of what it is shown."""

    tuning: Literal["whole", "lora", "frozen"] = Field("whole", description="what of the language model learns")
    lora: Lora = Field(Lora(rank=128, alpha=256, dropout=0.05), description="its adapters, where those learn")
    columns: tuple[Column, ...] = Field(
        ("captions",), min_length=1, description="what is said of pictures: captions, questions, polls, messages"
    )
    template: str = Field("<image>{question}", description="what an answer follows; for example with USER: in it")
    context: int = Field(64, ge=8, description="tokens of question and answer at most, without the picture's")

    @model_validator(mode="after")
    def _shows(self) -> Self:
        if self.template.count(IMAGE) != 1 or "{question}" not in self.template.partition(IMAGE)[2]:
            raise ValueError(f"template is {self.template!r}; it must have {IMAGE} once, and {{question}} after it")
        return self

    def check_tuning(self) -> None:
        """Raise ValueError where a tiny language model, of random weights, is not to learn as a whole."""
        if self.language.partition("?")[0] == TINY and self.tuning != "whole":
            raise ValueError(f"tuning is {self.tuning}; a tiny language model knows nothing yet: give whole")


class LlavaOptions(SpeakingOptions, frozen=True):
    """Options of LLaVA and of Frozen."""

    begin: str | None = Field(
        None, description="training of llava whose encoder, projector and language model to begin with: a first stage"
    )
    layer: int = Field(1, ge=1, description="its stage that is read, from the end; LLaVA reads the last but one, 2")
    train_encoder: bool = Field(False, description="whether the encoder learns, as Frozen's does")
    projector: Projection = Field("mlp", description="linear or mlp of every patch; prefix: of the picture's vector")
    prefix: int = Field(2, ge=1, description="words that a picture is, where it is a prefix")
    crop_scale: tuple[float, float] | None = Field(
        None, description="share of the picture's area in a random crop; default: its middle"
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.begin is None:
            self.check_tuning()
        if self.train_encoder and self.layer > 1:
            raise ValueError("layer must be 1 where the encoder learns: what follows another one would not")
        return self


class Parts(NamedTuple):
    """What a training begins with."""

    encoder: Backbone
    language: LanguageModel
    projector: VisualProjector | None = None


class Speaking(ByLanguageModel, Method):
    """An image encoder that does not change the texts, and a language model: what is said, and how it is asked.

    Attributes:
        options: of the method.
    """

    evaluated = "encoder"
    options: SpeakingOptions
    skipped: Tensor

    def _asked(self, question: str | None, template: str) -> list[int]:
        """Return the tokens of a template with a question; that of the picture is `PICTURE`."""
        text = template.replace("{question}", self.options.describe if question is None else question)
        before, image, after = text.partition(IMAGE) if IMAGE in template else (text, "", "")
        plain = self.language.tokenizer.plain
        return [*plain(before), *([PICTURE] if image else []), *(plain(after) if after else [])]

    @property
    def longest(self) -> int:
        """Tokens of a text at most, without those of the picture."""
        return self.options.context

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each: (B, K, W), (B, L) -> (B, L, V)."""
        return self.language(memory, tokens)

    def prompt(self, question: str | None) -> list[int]:
        """Return what an answer is said after: a beginning, and the template with the picture."""
        return [*self.language.tokenizer.begin, *self._asked(question, self.options.template)]

    def later(self, question: str | None) -> list[int]:
        """Return what a second or later answer is said after: the template without the picture."""
        return self._asked(question, without_picture(self.options.template))


class Llava(Speaking):
    """An image encoder, a projector, a language model.

    Args:
        config: of the image encoder, where options name none.
        options: of the method.
        known: the parts, as `learn` returns them, or what is `remembered` of them.
    """

    Options: ClassVar[type[OptionGroup]] = LlavaOptions
    options: LlavaOptions

    def __init__(self, config: BackboneConfig, options: LlavaOptions, known: Parts | Mapping[str, Any]) -> None:
        parts = known if isinstance(known, Parts) else _rebuilt(known, config)
        super().__init__(parts.encoder.config, options, None)
        self.options, self.encoder, self.language = options, parts.encoder, parts.language
        self.projector = VisualProjector(options.projector, self.config.width, self.language.width, options.prefix)
        if parts.projector is not None:
            self.projector.load_state_dict(parts.projector.state_dict())
        if not options.train_encoder:  # else what cannot learn, tokens of no number, stays so
            self.encoder.requires_grad_(False)
        self.language.requires_grad_(options.tuning == "whole")
        if options.tuning == "lora":
            adapt_language(self.language, options.lora)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))  # pictures of which nothing is said

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Return the columns that something is said in."""
        assert isinstance(options, LlavaOptions)
        return Reads(("image", *options.columns))

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> Parts:
        """Return the models to begin with; raises UserError where there are none."""
        assert isinstance(options, LlavaOptions)
        if options.begin is not None:
            return _of_training(options.begin, options)
        encoder = build(config) if options.encoder is None else load_model(options.encoder)
        return Parts(encoder, begun_language(options, spoken_corpus(plan.datasets, options.columns), out))

    @property
    def remembered(self) -> dict[str, object]:
        """What builds the parts again."""
        return {"encoder": asdict(self.config), "language": self.language.facts}

    @classmethod
    def imagined(cls, options: OptionGroup) -> dict[str, object]:
        """Return what describes the language model of the options; a tiny one reads bytes."""
        assert isinstance(options, LlavaOptions)
        language = load_language(options.language, train_tokenizer([], options.vocabulary))
        encoder = None if options.encoder is None else asdict(load_model(options.encoder).config)
        return {"language": language.facts, "encoder": encoder}

    def views(self) -> dict[str, Crop]:
        """One picture, cut at random or in the middle."""
        scale = self.options.crop_scale
        crop = Crop(1, self.config.img_size, centre=True) if scale is None else Crop(1, self.config.img_size, scale)
        return {"image": crop}

    def train(self, mode: bool = True) -> Self:
        """Keep in evaluation mode what does not learn."""
        super().train(mode)
        self.encoder.train(mode and self.options.train_encoder)
        self.language.train(mode and self.options.tuning != "frozen")
        return self

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of the answers of a batch: one conversation drawn for each picture."""
        drawn = draw_conversations(batch, self.options.columns, moment)
        pixels = normalised(to_unit(batch["image"][:, 0]), self.config.mean, self.config.std)
        memory = self.memory(pixels)
        loss = answers_loss(self, memory, drawn, self.longest)
        self.skipped += silent(drawn, pixels.device)
        return {"loss": loss, "features": memory.detach().mean(dim=1), "skipped": self.skipped.float()}

    def memory(self, pixels: Tensor) -> Tensor:
        """Return the vectors that stand for normalised pictures: (B, 3, S, S) -> (B, K, W)."""
        with torch.set_grad_enabled(self.options.train_encoder and torch.is_grad_enabled()):
            tokens = read_stage(self.encoder, pixels, self.options.layer)
        return self.projector(tokens)


def read_stage(encoder: Backbone, pixels: Tensor, layer: int) -> Tokens:
    """Return the tokens after a stage counted from the end, those of the last through the final norm alone.

    Args:
        encoder: of pictures.
        pixels: (B, 3, S, S), normalised.
        layer: 1 for the last.
    """
    if layer > 1 and isinstance(encoder, VisionTransformer):
        return encoder.intermediate(pixels, [max(0, len(encoder.blocks) - layer)], normed=False)[0]
    return encoder.last(pixels, layer)[0]


def _of_training(path: str, options: LlavaOptions) -> Parts:
    """Return the parts of a finished training. Raises UserError for one that does not fit."""
    earlier = load_training(path)
    if not isinstance(earlier, Llava):
        raise UserError(f"options.begin: {path} is no training of llava")
    if earlier.options.tuning == "lora":
        raise UserError(f"options.begin: the language model of {path} has adapters; give a training without")
    theirs = earlier.options
    for key in ("projector", "prefix"):
        ours, other = getattr(options, key), getattr(theirs, key)
        if ours != other and (key == "projector" or options.projector == "prefix"):
            raise UserError(f"options.{key}: that of {path} is {other}, not {ours}")
    return Parts(earlier.encoder, earlier.language, earlier.projector)


def _rebuilt(known: Mapping[str, Any], config: BackboneConfig) -> Parts:
    """Return the parts with initial weights; `config` is that of the encoder where nothing is known of it."""
    encoder = build(config_of(known["encoder"]) if known["encoder"] else config)
    return Parts(encoder, LanguageModel.of_facts(known["language"]))
