"""LoRA of a published LLaVA or BLIP of `transformers` on what shards say of their pictures.

As LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744) is tuned by adapters in the linear layers of its language model, here
with projector and image encoder frozen; for BLIP (Li et al. 2022, arXiv 2201.12086) they are in its text decoder, and
its texts are captions. Pictures are prepared as the model's own processor does, and the loss is the mean of -log p over
the tokens of answers and their ends.

A finished training has OUT/adapter/, which peft reads, and OUT/model/, the merged model with its processor as
`transformers` reads it. Shapes: B pictures, S their side, D width of the image encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.curation.store import storage
from granary.training.data.augment import normalised, to_unit
from granary.training.data.collate import Part
from granary.training.data.conversations import Column, draw_conversations, spoken_corpus
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.data.processed_views import ProcessedViews
from granary.training.data.reads import Reads
from granary.training.method import Method, Moment
from granary.training.models.answers import answers_loss, silent
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.checkpoint import method_weights, read_checkpoint
from granary.training.models.clip_transformers import model_folder
from granary.training.models.hub_backbone import HubBackbone
from granary.training.models.hub_generative import (
    ARCHITECTURES,
    HubBlip,
    HubGenerative,
    load_hub_generative,
    says_texts,
)
from granary.training.models.lora import Lora, adapt_generator, merged, save_adapter, save_parts


class GeneratorLoraOptions(OptionGroup, frozen=True):
    """Options of the fine-tuning."""

    generator: str = Field(
        min_length=1, description="the LLaVA or BLIP to start from: a folder saved by transformers, or hf:ID"
    )
    lora: Lora = Field(Lora(rank=128, alpha=256, dropout=0.05), description="the adapters")
    columns: tuple[Column, ...] = Field(
        ("captions",), min_length=1, description="what is said of pictures: captions, questions, polls, messages"
    )
    context: int = Field(512, ge=8, description="tokens of question and answer at most, without the picture's")


class GeneratorLora(Method):
    """A LLaVA or BLIP whose adapters learn.

    Args:
        config: not looked at: the architecture is that of the model.
        options: of the method.
        known: the model, as `learn` returns it, or what is `remembered` of it.
    """

    Options = GeneratorLoraOptions
    kinds = ("vit",)
    shardable = False  # the wrapper of peft and the model beside it are the same modules
    evaluated = "network"
    skipped: Tensor

    def __init__(
        self, config: BackboneConfig, options: GeneratorLoraOptions, known: HubGenerative | Mapping[str, str]
    ) -> None:
        generator = known if isinstance(known, HubGenerative) else HubGenerative.of_files(known)
        super().__init__(generator.config, options, None)
        self.options = options
        generator.requires_grad_(False)
        self.network = adapt_generator(generator, options.lora)
        self._generators: Sequence[HubGenerative] = [generator]  # no part of this module: its weights are in `network`
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))  # pictures of which nothing is said

    @property
    def generator(self) -> HubGenerative:
        """The model, with its adapters."""
        return self._generators[0]

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Return the columns that something is said in; pictures are as the model's processor prepares them."""
        assert isinstance(options, GeneratorLoraOptions)
        return Reads(("image", *options.columns), views=ProcessedViews(options.generator))

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> HubGenerative:
        """Return the model to start from. Raises UserError where there is none, or nothing is said in the columns."""
        assert isinstance(options, GeneratorLoraOptions)
        next(spoken_corpus(plan.datasets, options.columns))
        return _opened(options)

    @property
    def remembered(self) -> dict[str, str]:
        """Configurations, tokenizer and processor of the model, by file name."""
        return self.generator.files

    @classmethod
    def imagined(cls, options: OptionGroup) -> dict[str, str]:
        """Return what describes the model of the options: built from that, its weights are random."""
        assert isinstance(options, GeneratorLoraOptions)
        return _opened(options).files

    def views(self) -> dict[str, Crop]:
        """The picture as the model's processor cuts it."""
        return {"image": Crop(1, self.config.img_size, centre=True)}

    def train(self, mode: bool = True) -> Self:
        """Keep the image encoder in evaluation mode."""
        super().train(mode)
        self.generator.vision.eval()
        return self

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of the answers of a batch: one conversation drawn for each picture."""
        drawn = draw_conversations(batch, self.options.columns, moment)
        pixels = normalised(to_unit(batch["image"][:, 0]), self.config.mean, self.config.std)
        with torch.no_grad():
            memory = self.generator.memory(pixels)
        loss = answers_loss(self.generator, memory, drawn, min(self.options.context, self.generator.longest))
        self.skipped += silent(drawn, pixels.device)
        return {"loss": loss, "features": memory.mean(dim=1), "skipped": self.skipped.float()}

    def evaluated_model(self) -> HubBackbone:
        """Return the image encoder, which does not change."""
        return HubBackbone(self.generator.config, self.generator.vision)

    def model_to_use(self, weights: Mapping[str, Tensor]) -> tuple[BackboneConfig, Mapping[str, Tensor]]:
        """Return architecture and weights of the image encoder."""
        return self.generator.config, self.evaluated_model().state_dict()

    def saved(self, weights: Mapping[str, Tensor], url: str) -> None:
        """Write the merged model with its processor.

        Args:
            weights: of all modules.
            url: the folder.
        """
        save_parts([merged(self.generator.network, self.options.lora, weights), self.generator.processor], url)

    def finish(self, checkpoint: str, out: str) -> None:
        """Write adapters and merged model."""
        weights = method_weights(read_checkpoint(checkpoint)[0])
        save_adapter(self.network, weights, storage.join(out, "adapter"))
        self.saved(weights, storage.join(out, "model"))


def _opened(options: GeneratorLoraOptions) -> HubGenerative:
    """Return the model that options name. Raises UserError for another one, and for what it cannot say."""
    folder = model_folder(options.generator)
    if not says_texts(folder):
        kinds = " or ".join(ARCHITECTURES)
        raise UserError(f"options.generator: {options.generator!r} is not right; give a {kinds} of transformers")
    generator = load_hub_generative(folder)
    other = next((column for column in options.columns if column != "captions"), None)
    if other and isinstance(generator, HubBlip):
        raise UserError(f"options.columns: {other} is not right: {options.generator} is a BLIP, which says captions")
    return generator
