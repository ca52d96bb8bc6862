"""LongVU: a language model that is shown a long video within a budget of tokens (arXiv 2410.17434).

Frozen image encoders see every frame. Frames like those around them are dropped; an aggregator makes a map of each that
is left (section 3.1: SigLIP and DINOv2, fused); those that matter to the question keep its resolution, the others get
less, and if even that is too much, patches that do not change are dropped. What is left stands, in its order, in the
place of a word of the question. The loss is that of the answers' tokens alone.
Shapes: B videos, F frames at most, T frames of one, S side of a picture, P patches of width D, K vectors of a video of
width W, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.conversations import draw_conversations, spoken_corpus
from granary.training.data.crops import Crop
from granary.training.data.frames import COLUMNS, CONFIGS, FrameViews, Source
from granary.training.data.loader import BatchPlan
from granary.training.data.reads import Reads
from granary.training.data.tokenizer import train_tokenizer
from granary.training.losses.next_token import next_token_loss
from granary.training.method import Moment
from granary.training.methods.llava import Speaking, SpeakingOptions
from granary.training.models.answers import framed, silent
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, config_of
from granary.training.models.build import build
from granary.training.models.compression import SAME, SIMILAR, Compressed, Limits, costs_of, resized
from granary.training.models.language import LanguageModel, load_language
from granary.training.models.lora import adapt_language
from granary.training.models.reductions import Reduction, chosen_frames, within
from granary.training.models.registry import load_model
from granary.training.models.spoken import begun_language
from granary.training.models.training import load_training
from granary.training.models.vision_aggregator import VisionAggregator

ENCODED = 256  # frames that an encoder sees at once


class LongVUOptions(SpeakingOptions, frozen=True):
    """Options of LongVU."""

    comparer: str | None = Field(
        None,
        description="a second image encoder, whose patches are fused with the first one's and by which frames are "
        "compared; default: the first alone",
    )
    begin: str | None = Field(
        None,
        description="training of longvu whose encoders, aggregator, projector and language model to begin with: a "
        "first stage, of single pictures",
    )
    source: Source = Field(
        "images", description="what a row shows: images, a list of frames; video, a file; image, a single picture"
    )
    frames: int = Field(64, ge=1, description="of a row at most, in equal steps")
    rate: float = Field(1.0, gt=0, description="frames of a second of a video's file")
    budget: int = Field(256, ge=1, description="tokens of a video at most")
    reduction: Reduction = Field(
        "full",
        description="how a video is brought within it: all, not at all; uniform, frames in equal steps; temporal, of "
        "frames unlike their window; query, which are at high resolution where the question asks for them; full, and "
        "without patches that do not change",
    )
    window: int = Field(8, ge=1, description="frames that are compared with one another")
    similar: float = Field(SIMILAR, description="frames as similar as that to their window are dropped")
    itself: bool = Field(False, description="whether a frame's mean similarity holds itself, as the released program")
    patch_window: int = Field(8, ge=1, description="frames whose patches are compared with those of the first")
    same: float = Field(SAME, description="patches more similar than that to the first are dropped")
    newlines: Literal["rows", "first", "none"] = Field(
        "rows",
        description="a learned vector after every row of a frame: rows, while that has a patch; first, of a window's "
        "first frame, as the released program; none",
    )
    high: int = Field(12, ge=1, description="rows and columns of a frame at high resolution")
    low: int = Field(8, ge=1, description="and at low resolution")
    patches: int = Field(2, ge=1, description="rows and columns of patches that become one of them")
    width: int = Field(1024, ge=1, description="of the aggregator")
    depth: int = Field(3, ge=1, description="its blocks")
    heads: int = Field(16, ge=1, description="of its attention")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.begin is None:
            self.check_tuning()
        if self.low > self.high:
            raise ValueError(f"low is {self.low}; it must be at most high, {self.high}")
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}; it must divide width, {self.width}")
        row = self.high * (self.high + (self.newlines != "none"))
        if self.reduction in ("uniform", "temporal") and self.budget < row:
            raise ValueError(f"budget is {self.budget}; a frame at high resolution takes {row}")
        return self

    @property
    def limits(self) -> Limits:
        """What a video may cost, and how it is made to."""
        newlines: Literal["rows", "first"] = "first" if self.newlines == "first" else "rows"
        numbers = (self.budget, self.low, self.window, self.similar, self.itself, self.patch_window, self.same)
        return Limits(*numbers, newlines)


class Parts(NamedTuple):
    """What a training begins with."""

    encoder: Backbone
    comparer: Backbone | None
    language: LanguageModel
    weights: Mapping[str, Tensor] = {}  # of what lies between


class Watched(NamedTuple):
    """Videos as the language model sees them.

    Args:
        values: (B, K, W), beyond the tokens of a video 0.
        counts: (B,) int64 tokens of each.
        videos: what became of each.
    """

    values: Tensor
    counts: Tensor
    videos: list[Compressed]


class LongVU(Speaking):
    """Image encoders, an aggregator, a projector, a language model.

    Args:
        config: of the first image encoder, where options name none.
        options: of the method.
        known: the parts, as `learn` returns them, or what is `remembered` of them.
    """

    Options: ClassVar[type[OptionGroup]] = LongVUOptions
    takes_features = True
    options: LongVUOptions

    def __init__(self, config: BackboneConfig, options: LongVUOptions, known: Parts | Mapping[str, Any]) -> None:
        parts = known if isinstance(known, Parts) else _rebuilt(known, config)
        super().__init__(parts.encoder.config, options, None)
        self.options, self.encoder, self.language = options, parts.encoder, parts.language
        self.comparer = parts.comparer
        widths = [encoder.config.width for encoder in self._seeing]
        self.aggregator = VisionAggregator(
            widths, options.high, options.patches, options.width, options.depth, options.heads
        )
        word = self.language.width
        self.projector = nn.Sequential(nn.Linear(options.width, word), nn.GELU(), nn.Linear(word, word))
        self.newline = None if options.newlines == "none" else nn.Parameter(torch.randn(word) / word**0.5)
        for name, parameter in between(self).items():
            parameter.data.copy_(parts.weights.get(name, parameter.detach()))
        for encoder in self._seeing:
            encoder.requires_grad_(False)
        self.language.requires_grad_(options.tuning == "whole")
        if options.tuning == "lora":
            adapt_language(self.language, options.lora)
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))  # videos of which nothing is said

    @property
    def _seeing(self) -> list[Backbone]:
        return [self.encoder] if self.comparer is None else [self.encoder, self.comparer]

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Return the columns of frames, and those that something is said in."""
        assert isinstance(options, LongVUOptions)
        source = options.source
        views = FrameViews(source, options.rate)
        return Reads((*COLUMNS[source], *options.columns), config=CONFIGS[source], views=views)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> Parts:
        """Return the models to begin with; raises UserError where there are none."""
        assert isinstance(options, LongVUOptions)
        if options.begin is not None:
            return _of_training(options.begin, options)
        encoder = build(config) if options.encoder is None else load_model(options.encoder)
        comparer = None if options.comparer is None else load_model(options.comparer)
        return Parts(encoder, comparer, begun_language(options, spoken_corpus(plan.datasets, options.columns), out))

    @property
    def remembered(self) -> dict[str, object]:
        """What builds the parts again."""
        second = None if self.comparer is None else asdict(self.comparer.config)
        return {"encoder": asdict(self.config), "comparer": second, "language": self.language.facts}

    @classmethod
    def imagined(cls, options: OptionGroup) -> dict[str, object]:
        """Return what describes the models of the options; a tiny language model reads bytes."""
        assert isinstance(options, LongVUOptions)
        configs = [
            None if name is None else asdict(load_model(name).config) for name in (options.encoder, options.comparer)
        ]
        language = load_language(options.language, train_tokenizer([], options.vocabulary))
        return {"encoder": configs[0], "comparer": configs[1], "language": language.facts}

    def encoders(self) -> list[Backbone]:
        """Return the encoder that `init` gives weights to: the first."""
        return [self.encoder]

    def views(self) -> dict[str, Crop]:
        """The middle of every frame."""
        count = 1 if self.options.source == "image" else self.options.frames
        return {"image": Crop(count, self.config.img_size, centre=True)}

    def train(self, mode: bool = True) -> Self:
        """Keep in evaluation mode what does not learn."""
        super().train(mode)
        for encoder in self._seeing:
            encoder.eval()
        self.language.train(mode and self.options.tuning != "frozen")
        return self

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of the answers of a batch: one conversation drawn for each video."""
        drawn = draw_conversations(batch, self.options.columns, moment)
        watched = self.watch(self._features(batch), [chat[0].question if chat else None for chat in drawn])
        device = watched.values.device
        tokens, targets = (rows.to(device) for rows in framed(self, drawn, self.longest))
        logits = self.language(watched.values, tokens[:, :-1], watched.counts)
        loss = next_token_loss(logits, targets[:, 1:])
        self.skipped += silent(drawn, device)
        means = watched.values.detach().sum(dim=1) / watched.counts[:, None]
        return {
            "loss": loss,
            "features": means,
            "tokens": watched.counts.float().mean(),
            "skipped": self.skipped.float(),
        }

    def _features(self, batch: Part) -> list[list[Tensor]]:
        """Return for each video, of each encoder, (T, P, D): those that a batch has, or of its frames."""
        if "features" in batch:
            if self.comparer is not None:
                raise UserError("features: those of options.comparer cannot be read; leave features.model out")
            stored = batch["features"] if batch["features"].ndim == 4 else batch["features"][:, None]
            counts = [int(there.nonzero()[-1]) + 1 for there in stored.abs().amax(dim=(2, 3)) > 0]
            return [[video[:count]] for video, count in zip(stored, counts, strict=True)]
        counts = batch["frames"].tolist()
        frames = torch.cat([video[:count] for video, count in zip(batch["image"], counts, strict=True)])
        of_encoders = [features.split(counts) for features in self.encoded(frames)]
        return [list(one) for one in zip(*of_encoders, strict=True)]

    @torch.no_grad()
    def encoded(self, frames: Tensor) -> list[Tensor]:
        """Return what each encoder says of frames (T, S, S, 3) uint8: (T, P, D)."""
        parts = [self._patches(to_unit(part)) for part in frames.split(ENCODED)]
        return [torch.cat(some) for some in zip(*parts, strict=True)]

    def _patches(self, pixels: Tensor) -> list[Tensor]:
        """Return what each encoder says of pictures (T, 3, S, S) in 0..1, brought to its own size: (T, P, D)."""
        patches = []
        for encoder in self._seeing:
            side, own = encoder.config.img_size, pixels
            if pixels.shape[2] != side:
                own = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
            patches.append(encoder(normalised(own, encoder.config.mean, encoder.config.std)).patches)
        return patches

    def watch(self, features: Sequence[Sequence[Tensor]], questions: Sequence[str | None]) -> Watched:
        """Return videos as the language model sees them, each within the budget.

        Args:
            features: for each video, of each encoder, (T, P, D).
            questions: one for each; None asks for a description.
        """
        limits, reduction = self.options.limits, self.options.reduction
        costs = costs_of(self.options.high, self.options.high, limits, self.newline is not None)
        stay = [chosen_frames(own[-1], limits, costs, reduction) for own in features]
        left = [[maps[frames] for maps in own] for own, frames in zip(features, stay, strict=True)]
        squares = [_square(torch.cat(some)) for some in zip(*left, strict=True)]
        fused, counts = self.aggregator(squares), [len(frames) for frames in stay]
        large, small = self.projector(fused).split(counts), self.projector(resized(fused, *costs.small)).split(counts)
        videos = [
            within(sharp, low, frames, self._query(question), limits, reduction, self.newline)
            for sharp, low, frames, question in zip(large, small, stay, questions, strict=True)
        ]
        values = pad_sequence([video.tokens.values for video in videos], batch_first=True)
        lengths = torch.tensor([len(video.tokens.values) for video in videos], device=values.device)
        return Watched(values, lengths, videos)

    @torch.no_grad()
    def _query(self, question: str | None) -> Tensor:
        """Return the vectors of a question's words, (L, W), by which frames are chosen."""
        asked = self.options.describe if question is None else question
        words = self.language.tokenizer.plain(asked) or [self.end]
        embed: Any = self.language.network.get_input_embeddings()
        vectors: Tensor = embed(torch.tensor(words, device=embed.weight.device))
        return vectors

    def memory(self, pixels: Tensor) -> Tensor:
        """Return the vectors of normalised pictures, videos of one frame each: (B, 3, S, S) -> (B, K, W)."""
        mean, std = (pixels.new_tensor(some).view(3, 1, 1) for some in (self.config.mean, self.config.std))
        with torch.no_grad():
            of_encoders = self._patches(pixels * std + mean)
        pictures = [[patches[None] for patches in own] for own in zip(*of_encoders, strict=True)]
        return self.watch(pictures, [None] * len(pixels)).values


def between(method: LongVU) -> dict[str, nn.Parameter]:
    """Return the weights between the encoders and the language model, by name."""
    names = ("aggregator.", "projector.", "newline")
    return {name: parameter for name, parameter in method.named_parameters() if name.startswith(names)}


def _of_training(path: str, options: LongVUOptions) -> Parts:
    """Return the parts of a finished training. Raises UserError for one that does not fit."""
    earlier = load_training(path)
    if not isinstance(earlier, LongVU):
        raise UserError(f"options.begin: {path} is no training of longvu")
    if earlier.options.tuning == "lora":
        raise UserError(f"options.begin: the language model of {path} has adapters; give a training without")
    for key in ("high", "patches", "width", "depth", "heads"):
        ours, theirs = getattr(options, key), getattr(earlier.options, key)
        if ours != theirs:
            raise UserError(f"options.{key}: that of {path} is {theirs}, not {ours}")
    weights = {name: parameter.detach() for name, parameter in between(earlier).items()}
    return Parts(earlier.encoder, earlier.comparer, earlier.language, weights)


def _square(patches: Tensor) -> Tensor:
    """Return patches as a map, (T, P, D) -> (T, H, H, D)."""
    side = int(patches.shape[1] ** 0.5)
    return patches.unflatten(1, (side, side))


def _rebuilt(known: Mapping[str, Any], config: BackboneConfig) -> Parts:
    """Return the parts with initial weights; `config` is that of the encoder where nothing is known of it."""
    encoder = build(config_of(known["encoder"]) if known["encoder"] else config)
    comparer = build(config_of(known["comparer"])) if known["comparer"] else None
    return Parts(encoder, comparer, LanguageModel.of_facts(known["language"]))
