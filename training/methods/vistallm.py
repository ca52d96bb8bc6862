"""VistaLLM: a language model that answers by texts, boxes and masks over one or several pictures (arXiv 2312.12423).

Coordinates are tokens, a mask is a fixed number of points of its outline, and the loss is that of the answers' tokens
alone. A tokenizer guided by the instruction makes a few vectors of each picture; the number of a picture stands before
them. There is no code of the authors for the tokenizer and for several pictures: see `InstructionTokenizer`.
Shapes: B texts, L tokens, T pictures of all texts, P patches of width D, K vectors of a picture of width W, V tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.augment import normalised, to_unit
from granary.training.data.bins import BINS, picture_token, vocabulary
from granary.training.data.collate import Part
from granary.training.data.columns import SEVERAL
from granary.training.data.contours import SAMPLERS
from granary.training.data.crops import Crop
from granary.training.data.grammar import Grammar
from granary.training.data.instructions import COLUMN, Coding, Form, Instruction, asked_corpus, draw_instructions
from granary.training.data.loader import BatchPlan
from granary.training.data.pasted import pasted_views
from granary.training.data.reads import Reads
from granary.training.data.tokenizer import train_tokenizer
from granary.training.losses.next_token import IGNORED, next_token_loss
from granary.training.method import Method, Moment
from granary.training.methods.llava import read_stage
from granary.training.models.answers import silent
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, config_of
from granary.training.models.build import build
from granary.training.models.constrained import say
from granary.training.models.generative import padded
from granary.training.models.instructed import Instructed
from granary.training.models.instruction_tokenizer import InstructionTokenizer, TokenizerOptions
from granary.training.models.language import PICTURE, LanguageModel, load_language
from granary.training.models.registry import load_model
from granary.training.models.spoken import ByLanguageModel, LanguageOptions, begun_language
from granary.training.models.training import load_training
from granary.training.models.woven import Woven, weave

ANSWER = "<answer>"  # the token that an answer follows


class VistaOptions(LanguageOptions, frozen=True):
    """Options of VistaLLM."""

    begin: str | None = Field(None, description="training of vistallm to begin with: a first stage")
    layer: int = Field(1, ge=1, description="its stage that is read, from the end; VistaLLM reads the last but one, 2")
    train_encoder: bool = Field(False, description="whether the encoder learns")
    pictures_by: TokenizerOptions = Field(TokenizerOptions(), description="the tokenizer of pictures")
    pictures: int = Field(4, ge=1, le=16, description="pictures of an instruction at most")
    bins: int = Field(BINS, ge=2, description="of a coordinate")
    points: int = Field(24, ge=2, description="of a mask")
    sampler: str = Field("adaptive", description=f"which points of an outline: {', '.join(SAMPLERS)}")
    items: int = Field(4, ge=1, description="boxes of an answer, or masks of a picture, at most")
    tasks: tuple[str, ...] = Field((), description="of the instructions; default: all")
    template: str = Field("{question}", description="what follows the pictures; for example with USER: in it")
    context: int = Field(256, ge=16, description="tokens of question and answer at most, without the pictures'")
    vocabulary: int = Field(8192, ge=512, description="tokens at most of a tokenizer that is trained, without the bins")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; the samplers are {', '.join(SAMPLERS)}")
        if "{question}" not in self.template:
            raise ValueError(f"template is {self.template!r}; it must have {{question}} in it")
        if self.train_encoder and self.layer > 1:
            raise ValueError("layer must be 1 where the encoder learns: what follows another one would not")
        if self.pictures_by.width % self.pictures_by.heads:
            raise ValueError(f"pictures_by.heads is {self.pictures_by.heads}; it must divide the width")
        return self

    @property
    def coding(self) -> Coding:
        """How boxes and masks are written."""
        return Coding(self.bins, self.points, self.sampler)

    @property
    def tokens(self) -> list[str]:
        """The tokens that a tokenizer must know beside words."""
        return [*vocabulary(self.bins), *map(picture_token, range(self.pictures)), ANSWER]


class Parts(NamedTuple):
    """What a training begins with."""

    encoder: Backbone
    language: LanguageModel
    pictures_by: InstructionTokenizer | None = None


class VistaLLM(ByLanguageModel, Method, Instructed):
    """An image encoder, a tokenizer of its patches guided by the instruction, a language model.

    Args:
        config: of the image encoder, where options name none.
        options: of the method.
        known: the parts, as `learn` returns them, or what is `remembered` of them.
    """

    Options: ClassVar[type[OptionGroup]] = VistaOptions
    evaluated = "encoder"
    skipped: Tensor

    def __init__(self, config: BackboneConfig, options: VistaOptions, known: Parts | Mapping[str, Any]) -> None:
        parts = known if isinstance(known, Parts) else _rebuilt(known, config)
        super().__init__(parts.encoder.config, options, None)
        self.options, self.encoder, self.language = options, parts.encoder, parts.language
        sizes = self.language.vocabulary, self.config.width, self.language.width, options.context
        self.pictures_by = InstructionTokenizer(options.pictures_by, *sizes)
        if parts.pictures_by is not None:
            self.pictures_by.load_state_dict(parts.pictures_by.state_dict())
        if not options.train_encoder:  # else what cannot learn, tokens of no number, stays so
            self.encoder.requires_grad_(False)
        numbers = self.language.tokenizer.inner.get_vocab(with_added_tokens=True)
        self.answer, self.numbers = numbers[ANSWER], [numbers[picture_token(n)] for n in range(options.pictures)]
        others = frozenset([self.answer, *self.language.tokenizer.begin])
        counts = (options.bins, options.points, options.items, options.pictures)
        self.grammar = Grammar(numbers, self.language.vocabulary, self.end, others, *counts)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))  # rows of which nothing is asked

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Return the columns of pictures and of instructions."""
        return Reads((SEVERAL, COLUMN), views=pasted_views)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> Parts:
        """Return the models to begin with; raises UserError where there are none."""
        assert isinstance(options, VistaOptions)
        if options.begin is not None:
            return _of_training(options.begin, options)
        encoder = build(config) if options.encoder is None else load_model(options.encoder)
        language = begun_language(options, asked_corpus(plan.datasets, options.tasks), out)
        return Parts(encoder, language.extended(options.tokens))

    @property
    def remembered(self) -> dict[str, object]:
        """What builds the parts again."""
        return {"encoder": asdict(self.config), "language": self.language.facts}

    @classmethod
    def imagined(cls, options: OptionGroup) -> dict[str, object]:
        """Return what describes the language model of the options; a tiny one reads bytes."""
        assert isinstance(options, VistaOptions)
        language = load_language(options.language, train_tokenizer([], options.vocabulary)).extended(options.tokens)
        encoder = None if options.encoder is None else asdict(load_model(options.encoder).config)
        return {"language": language.facts, "encoder": encoder}

    def views(self) -> dict[str, Crop]:
        """As many pictures as an instruction may have, each in a square."""
        return {"image": Crop(self.options.pictures, self.config.img_size, centre=True, draws=0)}

    def train(self, mode: bool = True) -> Self:
        """Keep the encoder in evaluation mode where it does not learn."""
        super().train(mode)
        self.encoder.train(mode and self.options.train_encoder)
        return self

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of the answers of a batch: one instruction drawn for each row."""
        drawn = draw_instructions(batch, moment, self.options.tasks)
        patches = self.patches(batch["image"], batch["image_count"])
        counts = batch["image_count"].tolist()
        tokens, targets = (rows.to(patches.device) for rows in self.framed(drawn, counts))
        logits = self.said_after(patches, tokens[:, :-1])
        self.skipped += silent(drawn, patches.device)
        first = batch["image_count"].cumsum(dim=0) - batch["image_count"]
        features = patches.detach().mean(dim=1)[first.to(patches.device)]
        return {
            "loss": next_token_loss(logits, targets[:, 1:]), "features": features, "skipped": self.skipped.float(),
        }  # fmt: skip

    def patches(self, pictures: Tensor, counts: Tensor) -> Tensor:
        """Return the patches of the pictures that are there: (B, n, S, S, 3) uint8, (B,) -> (T, P, D)."""
        there = torch.arange(pictures.shape[1], device=pictures.device) < counts.to(pictures.device)[:, None]
        return self._read(normalised(to_unit(pictures[there]), self.config.mean, self.config.std))

    def _read(self, pixels: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.options.train_encoder and torch.is_grad_enabled()):
            return read_stage(self.encoder, pixels, self.options.layer).patches

    def framed(self, instructions: Sequence[Instruction | None], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return tokens (B, L) and targets (B, L), which are the tokens of answers and their ends, else `IGNORED`.

        Args:
            instructions: of each row; None has no target.
            counts: pictures of each.
        """
        rows, told = list[list[int]](), list[list[int]]()
        for one, count in zip(instructions, counts, strict=True):
            asked = self.asked(one.question if one else None, count)
            said = self.words(self.coding.answer(one)) if one else []
            said = said[: max(0, self.options.context - self._length(asked))]
            rows.append([*asked, *said])
            told.append([*[0] * len(asked), *[1] * len(said)])
        longest = max(map(len, rows))
        tokens, answers = (padded(some, longest, torch.device("cpu")) for some in (rows, told))
        return tokens, torch.where(answers > 0, tokens, IGNORED)

    def asked(self, question: str | None, pictures: int = 1) -> list[int]:
        """Return what an answer follows: a beginning, the pictures with their numbers, the question, `ANSWER`.

        A question that leaves no room for an answer loses its end.
        """
        words = self.language.tokenizer
        text = self.options.template.replace("{question}", self.options.describe if question is None else question)
        shown = chain.from_iterable((number, PICTURE) for number in self.numbers[:pictures])
        return [*words.begin, *shown, *words.plain(text)[: self.options.context // 2], self.answer]

    def _length(self, asked: Sequence[int]) -> int:
        """Return how many tokens of a prompt are those of question and frame."""
        return len(asked) - 2 * asked.count(PICTURE)

    def said_after(self, patches: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each: (T, P, D) of the pictures in (B, L) tokens -> (B, L, V)."""
        woven = self.woven(patches, tokens)
        logits: Tensor = self.language.network(inputs_embeds=woven.vectors, use_cache=False).logits
        return logits.gather(1, woven.last[..., None].expand(-1, -1, logits.shape[2]))

    def woven(self, patches: Tensor, tokens: Tensor) -> Woven:
        """Return the vectors of texts with their pictures; raises UserError where the model reads fewer."""
        shown = tokens == PICTURE
        visual = self.pictures_by(patches, *self._instructions(tokens))
        embed: Any = self.language.network.get_input_embeddings()
        words: Tensor = embed(tokens.clamp(min=0))
        woven = weave(words, shown, visual.to(words.dtype))
        room = self.language.room
        if room is not None and woven.vectors.shape[1] > room:
            raise UserError(
                f"options.context: pictures and texts are {woven.vectors.shape[1]} tokens, the language model takes "
                f"{room}; give a shorter context, or fewer queries"
            )
        return woven

    def _instructions(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words between the last picture of a text and `ANSWER` for each of its pictures, (T, I), and which
        of these are some, (T, I) bool."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        shown = tokens == PICTURE
        last = torch.where(shown, places, -1).amax(dim=1, keepdim=True)
        stop = torch.where(tokens == self.answer, places, tokens.shape[1]).amin(dim=1, keepdim=True)
        count = max(1, int((stop - last - 1).max()))
        taken = last + 1 + torch.arange(count, device=tokens.device)
        known = taken < stop
        words = tokens.gather(1, taken.clamp(max=tokens.shape[1] - 1)).masked_fill(~known, 0)
        owner = shown.nonzero()[:, 0]
        return words[owner], known[owner]

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def coding(self) -> Coding:
        """How boxes and masks are written."""
        return self.options.coding

    @property
    def side(self) -> int:
        """S."""
        return self.config.img_size

    @property
    def most(self) -> int:
        """Pictures of an instruction at most."""
        return self.options.pictures

    @torch.inference_mode()
    def answers(
        self,
        pictures: Tensor,
        counts: Sequence[int],
        questions: Sequence[str],
        forms: Sequence[Form],
        free: bool = False,
    ) -> list[str]:
        """Answer, see `Instructed`."""
        patches = self.patches(pictures, torch.tensor(counts))
        prompts = [self.asked(*pair) for pair in zip(questions, counts, strict=True)]
        most = max(self.grammar.longest(form, self.options.context) for form in forms)

        def allowed(row: int, said: Sequence[int]) -> list[int]:
            return self.grammar.allowed(forms[row], said, counts[row])

        said = self.likeliest(patches, prompts, most, None if free else allowed)
        return [self.spoken(tokens).strip() for tokens in said]

    def likeliest(
        self, memory: Tensor, prompts: Sequence[Sequence[int]], tokens: int, allowed: Any = None
    ) -> list[list[int]]:
        """Return the likeliest tokens, allowed ones alone, after prompts with the pictures of some patches."""
        count = self.vectors(memory)
        totals = [len(prompt) + (count - 1) * list(prompt).count(PICTURE) for prompt in prompts]
        longest = max(totals)
        before = [longest - total for total in totals]
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(before, prompts, strict=True)]
        woven = self.woven(memory, padded(rows, max(map(len, rows)), memory.device))
        return say(self.language, woven.vectors[:, :longest], before, tokens, allowed)

    def vectors(self, patches: Tensor) -> int:
        """Return K, how many vectors a picture of some patches (T, P, D) is."""
        linear = self.options.pictures_by.kind == "linear"
        return patches.shape[1] if linear else self.options.pictures_by.queries

    @property
    def longest(self) -> int:
        """Tokens of a text at most, without those of the picture."""
        return self.options.context

    def memory(self, pixels: Tensor) -> Tensor:
        """Return the patches of normalised pictures: (B, 3, S, S) -> (B, P, D)."""
        return self._read(pixels)

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each: (B, P, D), (B, L) -> (B, L, V)."""
        return self.said_after(memory, tokens)

    def prompt(self, question: str | None) -> list[int]:
        """Return what an answer about one picture follows."""
        return self.asked(question)


def _of_training(path: str, options: VistaOptions) -> Parts:
    """Return the parts of a finished training. Raises UserError for one that does not fit."""
    earlier = load_training(path)
    if not isinstance(earlier, VistaLLM):
        raise UserError(f"options.begin: {path} is no training of vistallm")
    for key in ("pictures_by", "bins", "context"):
        ours, theirs = getattr(options, key), getattr(earlier.options, key)
        if ours != theirs:
            raise UserError(f"options.{key}: that of {path} is {theirs}, not {ours}")
    if options.pictures > earlier.options.pictures:
        raise UserError(f"options.pictures: {path} was trained with {earlier.options.pictures} at most; give as many")
    return Parts(earlier.encoder, earlier.language, earlier.pictures_by)


def _rebuilt(known: Mapping[str, Any], config: BackboneConfig) -> Parts:
    """Return the parts with initial weights; `config` is that of the encoder where nothing is known of it."""
    encoder = build(config_of(known["encoder"]) if known["encoder"] else config)
    return Parts(encoder, LanguageModel.of_facts(known["language"]))
