"""LoRA of a CLIP of `transformers` on dense captions with explicit negatives (Urbanek et al. 2024, arXiv 2312.08578).

The paper: ViT-B/32, rank 1, 2 or 4, rate 1e-3 or 1e-4, 10 epochs, batch 32 on each of 2 devices, dropout 0.2, LoRA
alpha 2, biases of the adapted layers trained too, AdamW, the checkpoint with the lowest validation loss. Losses compare
within a device's share of the batch, as there; `accumulate` cuts the batch of one device into such shares.

A finished training has OUT/adapter/, which peft reads, and OUT/model/, the merged model as `transformers` reads it.
Shapes: B entries, N captions of an entry, M negatives, D dimensions of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.curation.store import storage
from granary.training.data.augment import normalised, to_unit
from granary.training.data.clip_views import ClipViews
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.data.pairs import captions_of, negatives_of
from granary.training.data.reads import Reads
from granary.training.losses import captions as dci
from granary.training.method import Method, Moment
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.checkpoint import method_weights, read_checkpoint
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.lora import Lora, adapt, merged, save_adapter, save_parts
from granary.training.models.weights import from_transformers

COLUMNS = ("image", "captions", "negatives", "file", "box", "mask", "darkened")
FORMER_STATE = "training.safetensors"  # of trainings before they were those of the one loop


class DciLoraOptions(OptionGroup, frozen=True):
    """Options of the fine-tuning."""

    clip: str = Field(min_length=1, description="the CLIP to start from: a folder saved by transformers, or hf:ID")
    lora: Lora = Field(Lora(), description="the adapters")
    captions: dci.Captions = Field("pick1", description="first; pick1: a random one per visit; pick5: five, pooled")
    pooling: dci.Pooling = Field("mean", description="of pick5: mean, hardest, or hardest_as_published")
    negatives: str = Field("swaps", description="kind of negative: swaps, basic, layout, any")
    negative_choice: dci.NegativeChoice = Field("first", description="which one of that kind")
    alpha: float = Field(1, ge=0, description="weight of the CLIP loss")
    beta: float = Field(1, ge=0, description="weight of the negative loss; the paper tried 0, 1 and 9")


MOVED = {  # key of a recipe of version 0.1 -> the group it is in now, and its name there
    **{name: ("options", name) for name in DciLoraOptions.model_fields if name != "clip"},
    "model": ("options", "clip"),
    "rate": ("optimiser", "lr"),
    "lr": ("optimiser", "lr"),
    "weight_decay": ("optimiser", "weight_decay"),
    "accelerator": ("device", "accelerator"),
    "devices": ("device", "devices"),
    "precision": ("device", "precision"),
}
RENAMED = {"float32": "32-true", "bfloat16": "bf16-mixed"}  # values of precision


class Chosen(NamedTuple):
    """The texts of a batch.

    Args:
        rows: those that have a caption.
        captions: N of each of them, end to end.
        negatives: place among the rows -> text.
    """

    rows: list[int]
    captions: list[str]
    negatives: dict[int, str]


class DciLora(Method):
    """A CLIP whose adapters learn.

    Args:
        config: not looked at: the architecture is that of the CLIP.
        options: of the method.
        known: the CLIP, as `learn` returns it, or what is `remembered` of it.
    """

    Options = DciLoraOptions
    kinds = ("vit",)
    shardable = False  # CLIP's scale is a parameter without an axis
    evaluated = "network"
    skipped: Tensor
    truncated: Tensor

    def __init__(self, config: BackboneConfig, options: DciLoraOptions, known: ClipModel | Mapping[str, str]) -> None:
        self.clip = known if isinstance(known, ClipModel) else ClipModel.of_files(known)
        super().__init__(config, options, None)
        self.options = options
        self.network = adapt(self.clip, options.lora)
        self.config = self.evaluated_model().config
        for name in ("skipped", "truncated"):  # entries without a caption, texts beyond the context, so far
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Return what is read: rows of the config `pairs`, their pictures as the CLIP's processor prepares them."""
        assert isinstance(options, DciLoraOptions)
        return Reads(COLUMNS, config="pairs", views=ClipViews(options.clip))

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> ClipModel:
        """Return the CLIP to start from. Raises UserError where there is none, or `out` is of an earlier version."""
        assert isinstance(options, DciLoraOptions)
        if storage.exists(storage.join(out, FORMER_STATE)):
            raise UserError(f"out: {out} holds a fine-tuning of an earlier version, which cannot go on; give another")
        if plan.batch < 2:
            raise UserError(f"batch: {plan.batch} is not right: a picture is compared with the captions of others")
        return ClipModel.load(options.clip, "cpu")

    @classmethod
    def of_earlier(cls, tree: Mapping[str, object]) -> Mapping[str, object]:
        """Return a recipe of version 0.1, which had a form of its own, in the keys of now.

        Its learning rate was constant, its batch that of one device, and it might have both epochs and steps.

        Raises:
            ValueError: a value is given under both its keys.
        """
        moved = {
            key: value for key, value in tree.items() if key in MOVED and (key != "model" or isinstance(value, str))
        }
        made = {key: value for key, value in tree.items() if key not in moved}
        for key, value in moved.items():
            group, name = MOVED[key]
            there = made.get(group) or {}
            if not isinstance(there, Mapping) or name in there:
                raise ValueError(f"{key} is another name of {group}.{name}; give one of them")
            constant = {"final_lr": value} if name == "lr" else {}
            made[group] = {**constant, **there, name: RENAMED.get(str(value), value) if name == "precision" else value}
        batch, devices = made.get("batch"), moved.get("devices")
        if isinstance(batch, int) and isinstance(devices, int):
            made["batch"] = batch * devices
        return {**made, "epochs": None} if moved and made.get("steps") else made

    @property
    def remembered(self) -> dict[str, str]:
        """Configuration, tokenizer and processor of the CLIP, by file name."""
        return self.clip.files()

    @classmethod
    def imagined(cls, options: OptionGroup) -> dict[str, str]:
        """Return what describes the CLIP of the options: built from that, its weights are random."""
        assert isinstance(options, DciLoraOptions)
        return ClipModel.load(options.clip, "cpu").files()

    def views(self) -> dict[str, Crop]:
        """The picture as the CLIP's processor cuts it."""
        return {"image": Crop(1, self.clip.side, centre=True)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the losses of a batch: alpha * clip_loss + beta * negative_loss is the loss."""
        chosen = self.choose(batch, moment)
        tokens = self.tokens([*chosen.captions, *chosen.negatives.values()])
        images = self.clip.encode_pixels(self.pixels(batch["image"][chosen.rows, 0]))
        texts = self.clip.encode_tokens(tokens)
        losses = self.losses(images, texts, list(chosen.negatives))
        watched = {"skipped": self.skipped.float(), "truncated": self.truncated.float()}
        return {**losses, "features": images.detach(), **watched}

    def pixels(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, side, side, 3) uint8 normalised as the CLIP's processor does."""
        return normalised(to_unit(pictures), *self.clip.statistics)

    def choose(self, batch: Part, moment: Moment) -> Chosen:
        """Choose captions and negatives of a batch. Without any caption it is one empty text, whose loss is 0."""
        options, visit = self.options, (moment.seed, moment.step)
        captions = [captions_of(texts) for texts in batch["captions"]]
        rows = [row for row, texts in enumerate(captions) if texts]
        self.skipped += len(captions) - len(rows)
        if not rows:
            return Chosen([0], [""], {})
        names = [batch["id"][row] for row in rows]
        texts = [
            text
            for name, row in zip(names, rows, strict=True)
            for text in dci.choose_captions(name, captions[row], options.captions, *visit)
        ]
        if not options.beta:
            return Chosen(rows, texts, {})
        how = (options.negatives, options.negative_choice, *visit)
        negatives = [
            dci.choose_negative(name, negatives_of(batch["negatives"][row]), *how)
            for name, row in zip(names, rows, strict=True)
        ]
        return Chosen(rows, texts, {place: text for place, text in enumerate(negatives) if text is not None})

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """Return the inputs of the text encoder, and count the texts that were cut."""
        before = self.clip.truncated
        tokens = self.clip.tokens(texts)
        self.truncated += self.clip.truncated - before
        return tokens

    def losses(self, images: Tensor, texts: Tensor, rows: list[int]) -> dict[str, Tensor]:
        """Return loss, clip_loss and negative_loss.

        Args:
            images: (B, D) unit rows.
            texts: (B * N + M, D) unit rows: the captions of each picture, then the negatives.
            rows: of the pictures that the M negatives are of.
        """
        captions, pooling = (len(texts) - len(rows)) // len(images), self.options.pooling
        count = len(images) * captions
        logits = self.clip.scaled(images @ texts[:count].T)  # (B, B * N)
        negatives = self.clip.scaled((images[rows] * texts[count:]).sum(dim=1))  # (M,)
        positives = dci.pool_positives(logits, captions, pooling)[rows]  # (M,)
        clip = dci.matching_loss(dci.pool_captions(logits, captions, pooling))
        negative = dci.negative_loss(positives, negatives)
        loss = self.options.alpha * clip + self.options.beta * negative
        return {"loss": loss, "clip_loss": clip, "negative_loss": negative}

    def evaluated_model(self) -> Backbone:
        """Return the image encoder with the adapters merged into its weights: a copy."""
        return from_transformers(merged(self.clip.model, self.options.lora, self.state_dict()))

    def model_to_use(self, weights: Mapping[str, Tensor]) -> tuple[BackboneConfig, Mapping[str, Tensor]]:
        """Return architecture and weights of the merged image encoder."""
        model = from_transformers(merged(self.clip.model, self.options.lora, weights))
        return model.config, model.state_dict()

    def finish(self, checkpoint: str, out: str) -> None:
        """Write adapters and merged model."""
        weights = method_weights(read_checkpoint(checkpoint)[0])
        save_adapter(self.network, weights, storage.join(out, "adapter"))
        model = merged(self.clip.model, self.options.lora, weights)
        save_parts([model, self.clip.tokenizer, self.clip.processor], storage.join(out, "model"))
