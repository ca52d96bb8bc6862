"""CLIP and SigLIP: images and texts in one space (Radford et al. 2021, arXiv 2103.00020; Zhai et al. 2023, 2303.15343).

Shapes: B pictures, T texts of L tokens, D dimensions of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.options import Options as OptionGroup
from granary.curation.store import storage
from granary.curation.store.sampling import priority
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.data.tokenizer import corpus, filled, read_tokenizer, train_tokenizer
from granary.training.losses.contrastive import contrastive_loss, gathered_pairs, sigmoid_loss
from granary.training.method import Method, Moment
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build
from granary.training.models.checkpoint import described
from granary.training.models.dual_encoder import DualEncoder, DualEncoderOptions, Kind
from granary.training.models.vit_config import ViTConfig
from granary.training.models.weights import CLIP_MEAN, CLIP_STD

HOTTEST = math.log(100)  # of alpha, so that exp(alpha) is at most 100
TOKENIZER = "tokenizer.json"


class PairOptions(OptionGroup, frozen=True):
    """What CLIP and SigLIP have in common; defaults are the papers'."""

    tokenizer: str | None = Field(None, description="tokenizer.json to use; default: one is trained on the captions")
    vocabulary: int = Field(49_408, ge=512, description="tokens at most of a tokenizer that is trained")
    corpus: int = Field(1_000_000, ge=1, description="captions at most that it is trained on")
    context: int = Field(77, ge=4, description="tokens of a text at most")
    text_width: int = Field(512, ge=4, description="width of the text encoder")
    text_depth: int = Field(12, ge=1, description="blocks of the text encoder")
    text_heads: int = Field(8, ge=1, description="heads of the text encoder")
    crop_scale: tuple[float, float] = Field((0.9, 1.0), description="share of the picture's area in a crop")
    flip: float = Field(0.0, ge=0, le=1, description="chance that a picture is mirrored; captions name left and right")
    jitter: float = Field(0.0, ge=0, le=1, description="chance that colours are changed; captions name colours")
    grey: float = Field(0.0, ge=0, le=1, description="chance that a picture is grey")
    duplicates: Literal["masked", "negatives"] = Field(
        "masked", description="equal captions of different pictures in a batch: left out, or negatives as published"
    )
    bias: float = Field(
        -10.0, description="initial b of the sigmoid loss; -10 is for 32,768 pairs, a smaller batch of N wants -ln N"
    )
    chunk: int | None = Field(
        None, ge=1, description="texts at once in the sigmoid loss, computed again in the backward pass: less memory"
    )


class CLIPOptions(PairOptions, frozen=True):
    """Options of CLIP."""

    loss: Literal["contrastive", "sigmoid"] = Field("contrastive", description="sigmoid: SigLIP's, on CLIP's encoders")
    dimension: int = Field(512, ge=1, description="dimensions of the shared space")


class SigLIPOptions(PairOptions, frozen=True):
    """Options of SigLIP; its shared space has the width of the image encoder."""

    loss: Literal["sigmoid"] = Field("sigmoid", description="the pairwise loss")
    vocabulary: int = Field(32_000, ge=512, description="tokens at most of a tokenizer that is trained")
    context: int = Field(64, ge=4, description="tokens of a text at most")
    text_width: int = Field(768, ge=4, description="width of the text encoder")
    text_heads: int = Field(12, ge=1, description="heads of the text encoder")


class CLIP(Method, DualEncoder):
    """CLIP: an image encoder and a text encoder that give a picture and its caption nearly the same unit vector.

    Args:
        config: of the image encoder.
        options: of the method.
        tokenizer: its JSON, as `learn` returns it.
    """

    Options: ClassVar[type[OptionGroup]] = CLIPOptions
    MODEL = {  # noqa: RUF012 read only
        "pre_norm": True, "patch_bias": False, "layer_scale": 0.0, "norm_eps": 1e-5, "antialias": False,
        "mean": CLIP_MEAN, "std": CLIP_STD,
    }  # fmt: skip
    kinds = ("vit",)
    KIND: ClassVar[Kind] = "clip"
    columns = ("image", "captions")
    evaluated = "image"
    config: ViTConfig
    options: CLIPOptions | SigLIPOptions
    skipped: Tensor

    def __init__(self, config: ViTConfig, options: CLIPOptions | SigLIPOptions, tokenizer: str) -> None:
        architecture = DualEncoderOptions.model_validate(options.model_dump())
        DualEncoder.__init__(self, self.KIND, config, architecture, tokenizer)
        self.options = options
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))  # samples without a caption so far

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> str:
        """Return the JSON of the tokenizer: of the run that goes on in `out`, the given one, or one trained now.

        Raises:
            UserError: it cannot be read, or no sample has a caption.
        """
        assert isinstance(options, PairOptions)
        earlier = storage.join(out, TOKENIZER)
        if storage.exists(earlier):
            return read_tokenizer(earlier)
        captions = corpus(plan.datasets)
        if options.tokenizer:
            next(captions)
            return read_tokenizer(options.tokenizer)
        return train_tokenizer(islice(captions, options.corpus), options.vocabulary)

    @property
    def remembered(self) -> str:
        """The JSON of the tokenizer."""
        return self.tokenizer.json

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> str:
        """Return the JSON of the tokenizer; before it was written in words it was among the weights."""
        return str(described(weights)["tokenizer"] if remembered is None else remembered)

    @classmethod
    def imagined(cls, options: OptionGroup) -> str:
        """Return the JSON of the given tokenizer, or of one that reads bytes."""
        assert isinstance(options, PairOptions)
        return read_tokenizer(options.tokenizer) if options.tokenizer else train_tokenizer([], options.vocabulary)

    @classmethod
    def untrained(cls, config: BackboneConfig, options: OptionGroup) -> Backbone:
        """Return an image encoder with our own initial weights: there is no tokenizer without data."""
        return build(config)

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the training directory, by name."""
        return {TOKENIZER: self.tokenizer.json.encode()}

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, one caption drawn for each picture."""
        pixels, tokens, keys = self.inputs(batch, moment)
        images = self.images(pixels)
        loss, everyone = self.compared(images, self.texts(tokens), keys)
        self.skipped += (everyone == 0).sum()
        watched = {"skipped": self.skipped.float(), "scale": self.scale.detach().exp()[0]}
        return {"loss": loss, "features": images.detach(), **watched}

    def inputs(self, batch: Part, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalised pictures (B, 3, S, S), the tokens (B, L) of a caption each, and `caption_keys` (B,)."""
        options = self.options
        changes = Photometric(flip=options.flip, jitter=options.jitter, grey=options.grey, blur=0.0)
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        captions = draw_captions(batch["captions"], batch["id"], moment)
        tokens = self.tokenizer.numbers([caption or "" for caption in captions])
        keys = caption_keys(captions, tokens, self.tokenizer.end).to(pixels.device)
        return normalised(pixels, self.config.mean, self.config.std), tokens.to(pixels.device), keys

    def compared(self, images: Tensor, texts: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of this process, whose mean over processes is that of the batch, and the keys of all, (N,).

        Args:
            images, texts: what `images` and `texts` gave, of this process.
            keys: (B,) `caption_keys`.
        """
        every = gathered_pairs(images, texts, keys)
        pairs = every.distinct() if self.options.duplicates == "negatives" else every
        if self.options.loss == "sigmoid":
            return sigmoid_loss(pairs, self.scale, self.bias, self.options.chunk), every.keys
        return contrastive_loss(pairs, self.scale), every.keys

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Keep alpha in 0 .. ln 100, in CLIP's loss alone."""
        if self.options.loss == "contrastive":
            self.scale.clamp_(0, HOTTEST)


class SigLIP(CLIP):
    """SigLIP: patches pooled by attention, a bidirectional text encoder, the sigmoid loss."""

    Options = SigLIPOptions
    MODEL = {"class_token": False, "layer_scale": 0.0, "mean": (0.5,) * 3, "std": (0.5,) * 3}  # noqa: RUF012
    KIND = "siglip"


def draw_captions(captions: Sequence[Sequence[str]], ids: Sequence[str], moment: Moment) -> list[str | None]:
    """Draw one caption of each sample by (seed, step, id); None where a sample has none that is not blank."""
    drawn = priority(moment.seed, list(ids), f"caption/{moment.step}").tolist()
    choices = [filled(texts) for texts in captions]
    return [texts[number % len(texts)] if texts else None for texts, number in zip(choices, drawn, strict=True)]


def caption_keys(captions: Sequence[str | None], tokens: Tensor, end: int) -> Tensor:
    """Return (B,) int64: 0 for no caption, else odd, and equal where tokens (B, L) are, up to the first `end`."""
    keys = [0 if caption is None else _hash(row, end) for caption, row in zip(captions, tokens.tolist(), strict=True)]
    return torch.tensor(keys, dtype=torch.int64)


def _hash(row: list[int], end: int) -> int:
    words = repr(row[: row.index(end)]).encode()
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "little", signed=True) | 1
