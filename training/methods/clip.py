"""CLIP and SigLIP: images and texts in one space (Radford et al. 2021, arXiv 2103.00020; Zhai et al. 2023, 2303.15343).

Shapes: B pictures, T texts of L tokens, P patches, W width, D dimensions of the shared space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage
from granary.curation.store.sampling import priority
from granary.training.data import shards
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.crops import Crop
from granary.training.losses.contrastive import Pairs, contrastive_loss, gathered_pairs, sigmoid_loss
from granary.training.methods import Moment, standard_groups
from granary.training.models.text import (
    TextConfig,
    TextTokenizer,
    TextTransformer,
    corpus,
    filled,
    initialise_blocks,
    read_tokenizer,
    train_tokenizer,
)
from granary.training.models.vit import MLP, VisionTransformer, ViTConfig
from granary.training.models.weights import CLIP_DEVIATION, CLIP_MEAN

HOTTEST = math.log(100)  # of alpha, so that exp(alpha) is at most 100
TOKENIZER = "tokenizer.json"


class PairOptions(Options, frozen=True):
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


class AttentionPool(nn.Module):
    """A learnt query that attends to the patches, then an MLP: (B, P, W) -> (B, W) (SigLIP's pooling, "MAP")."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = MLP(width, int(config.hidden * width), config.mlp == "quick_gelu")
        for layer in (self.q, self.kv, self.out, self.mlp.up, self.mlp.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, P, W) -> (B, W)."""
        q = self.q(self.query).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (1, heads, 1, W / heads)
        k, v = self.kv(patches).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, P, W / heads)
        x = self.out(F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]


class CLIP(nn.Module):
    """An image encoder and a text encoder that give a picture and its caption nearly the same unit vector.

    Args:
        config: of the image encoder.
        options: of the method.
        tokenizer: its JSON, as `learn` finds it.
    """

    Options: type[PairOptions] = CLIPOptions
    MODEL = {  # noqa: RUF012 read only
        "pre_norm": True, "patch_bias": False, "layer_scale": 0.0, "norm_eps": 1e-5, "antialias": False,
        "mean": CLIP_MEAN, "deviation": CLIP_DEVIATION,
    }  # fmt: skip
    CAUSAL = True
    columns = ("image", "captions")
    evaluated = "image"
    skipped: Tensor

    def __init__(self, config: ViTConfig, options: Any, tokenizer: str) -> None:
        super().__init__()
        self.config, self.options = config, options
        self.tokenizer = TextTokenizer(tokenizer, options.context, self.CAUSAL)
        self.image = VisionTransformer(config)
        initialise_blocks(self.image.blocks, config.width)
        self.text = TextTransformer(_text_config(config, options, self.tokenizer))
        self.pool = self._pool()
        sigmoid = options.loss == "sigmoid"
        self.scale = nn.Parameter(torch.tensor([math.log(10 if sigmoid else 1 / 0.07)]))  # t' or alpha
        if sigmoid:
            self.bias = nn.Parameter(torch.tensor([options.bias]))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))  # samples without a caption so far
        described = {"options": options.model_dump(mode="json"), "tokenizer": self.tokenizer.json}
        data = bytearray(json.dumps(described).encode())
        self.register_buffer("described", torch.frombuffer(data, dtype=torch.uint8).clone())  # a checkpoint has it all
        self._ddp_params_and_buffers_to_ignore = ["described"]  # else DDP would send it round at every step

    def _pool(self) -> nn.Module:
        projection = nn.Linear(self.config.width, self.options.dimension, bias=False)
        nn.init.normal_(projection.weight, std=self.config.width**-0.5)
        return projection

    @classmethod
    def learn(cls, options: Any, datasets: Sequence[shards.Dataset], out: str) -> str:
        """Return the JSON of the tokenizer: of the run that goes on in `out`, the given one, or one trained now.

        Raises UserError where it cannot be read, or no sample has a caption.
        """
        earlier = storage.join(out, TOKENIZER)
        if storage.exists(earlier):
            return read_tokenizer(earlier)
        captions = corpus(datasets)
        if options.tokenizer:
            next(captions)
            return read_tokenizer(options.tokenizer)
        return train_tokenizer(islice(captions, options.corpus), options.vocabulary)

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the training directory, by name."""
        return {TOKENIZER: self.tokenizer.json.encode()}

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.side, self.options.crop_scale)}

    def images(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures, (B, 3, S, S) -> (B, D), not of unit length."""
        return self.pool(self.image(pixels).cls)

    def texts(self, tokens: Tensor) -> Tensor:
        """Encode token numbers, (T, L) -> (T, D), not of unit length."""
        return self.text(tokens)

    def forward(self, batch: dict[str, Any], moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch, one caption drawn for each picture."""
        options = self.options
        changes = Photometric(flip=options.flip, jitter=options.jitter, grey=options.grey, blur=0.0)
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        captions = draw_captions(batch["captions"], batch["id"], moment)
        tokens = self.tokenizer.numbers([caption or "" for caption in captions])
        keys = caption_keys(captions, tokens, self.tokenizer.end).to(pixels.device)
        images = self.images(normalised(pixels, self.config.mean, self.config.deviation))
        pairs = gathered_pairs(images, self.texts(tokens.to(pixels.device)), keys)
        self.skipped += (pairs.keys == 0).sum()
        if options.duplicates == "negatives":
            pairs = pairs.distinct()
        loss = self.loss(pairs)
        watched = {"skipped": self.skipped.float(), "scale": self.scale.detach().exp()[0]}
        return {"loss": loss, "features": images.detach(), **watched}

    def loss(self, pairs: Pairs) -> Tensor:
        """Return the loss of this process: the mean over processes is the loss of the batch."""
        if self.options.loss == "sigmoid":
            return sigmoid_loss(pairs, self.scale, self.bias, self.options.chunk)
        return contrastive_loss(pairs, self.scale)

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Keep alpha in 0 .. ln 100, in CLIP's loss alone."""
        if self.options.loss == "contrastive":
            self.scale.clamp_(0, HOTTEST)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All weights; no decay of scale, bias, biases and norms, which would drag SigLIP's bias to 0."""
        return standard_groups(self)


class SigLIP(CLIP):
    """SigLIP: patches pooled by attention, a bidirectional text encoder, the sigmoid loss."""

    Options = SigLIPOptions
    MODEL = {"class_token": False, "layer_scale": 0.0, "mean": (0.5,) * 3, "deviation": (0.5,) * 3}  # noqa: RUF012
    CAUSAL = False

    def _pool(self) -> nn.Module:
        if self.config.class_token or self.config.registers:
            raise UserError("model: SigLIP has no class token and no registers")
        return AttentionPool(self.config)

    def images(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures, (B, 3, S, S) -> (B, D), not of unit length."""
        return self.pool(self.image(pixels).patches)


def _text_config(config: ViTConfig, options: Any, tokenizer: TextTokenizer) -> TextConfig:
    """Return the architecture of the text encoder; raises UserError for heads that do not divide the width."""
    if options.text_width % options.text_heads or options.text_width % 4:
        raise UserError(f"options.text_width: {options.text_width} must be a multiple of 4 and of options.text_heads")
    mlp = "gelu" if config.mlp == "swiglu" else config.mlp
    return TextConfig(
        tokenizer.vocabulary,
        options.context,
        options.text_width,
        options.text_depth,
        options.text_heads,
        getattr(options, "dimension", config.width),
        tokenizer.causal,
        tokenizer.end,
        mlp,
        config.norm_eps,
    )


def draw_captions(captions: Sequence[Sequence[str]], ids: Sequence[str], moment: Moment) -> list[str | None]:
    """Draw one caption of each sample by (seed, step, id); None where a sample has none that is not blank."""
    drawn = priority(moment.seed, list(ids), f"caption/{moment.step}").tolist()
    own = [filled(each) for each in captions]
    return [texts[number % len(texts)] if texts else None for texts, number in zip(own, drawn, strict=True)]


def caption_keys(captions: Sequence[str | None], tokens: Tensor, end: int) -> Tensor:
    """Return (B,) int64: 0 for no caption, else odd, and equal where tokens (B, L) are, up to the first `end`."""
    keys = [0 if caption is None else _hash(row, end) for caption, row in zip(captions, tokens.tolist(), strict=True)]
    return torch.tensor(keys, dtype=torch.int64)


def _hash(row: list[int], end: int) -> int:
    words = repr(row[: row.index(end)]).encode()
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "little", signed=True) | 1
