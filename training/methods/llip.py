"""Llip: the caption decides how the tokens of a picture are mixed (Lavoie et al. 2024, arXiv 2405.00740).

A picture has many captions that are right, so its encoder gives K mixture tokens, the registers of the ViT, and a text
mixes them by cross-attention into the one vector that it is compared with. Every picture is mixed for every caption of
the batch: mixed for its own caption alone, the answer could be read off the text.
Shapes: B pictures, N of all processes, K mixture tokens of width W, T texts, D dimensions of the shared space.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.losses.contrastive import Matches, pairwise_sigmoid_loss
from granary.training.losses.processes import gathered
from granary.training.method import Moment
from granary.training.methods.clip import CLIP, CLIPOptions
from granary.training.models.mixture import Mixing, TextMixture
from granary.training.models.vit_config import ViTConfig


class LlipOptions(CLIPOptions, frozen=True):
    """Options of Llip; K is `model.registers`."""

    loss: Literal["sigmoid"] = Field("sigmoid", description="the pairwise loss")
    mixing: Mixing = Field("text", description="text: the caption weighs the mixture tokens; uniform: all count alike")
    heads: int = Field(8, ge=1, description="heads of the attention of a text over the mixture tokens")
    temperature: float = Field(
        5.0, gt=0, description="tau, which divides the attention's logits: the larger, the more alike all tokens count"
    )
    root: bool = Field(True, description="whether the root of a head's dimensions divides them too, as in attention")


class Llip(CLIP):
    """CLIP's encoders, SigLIP's loss, and between them a mixture of the picture's tokens that each caption chooses.

    The text sees the K registers alone. The class token, where there is one, takes part in the blocks and no loss reads
    it. The target of a text is the projection of the vector that asks.

    Args:
        config: of the image encoder; its registers are the mixture tokens.
        options: of the method.
        tokenizer: its JSON, as `learn` returns it.

    Raises:
        UserError: there are no registers, or heads do not divide the dimensions.
    """

    Options: ClassVar[type[OptionGroup]] = LlipOptions
    MODEL = {**CLIP.MODEL, "registers": 64}  # noqa: RUF012 read only
    options: LlipOptions
    pool: TextMixture

    def __init__(self, config: ViTConfig, options: LlipOptions, tokenizer: str) -> None:
        if not config.registers:
            raise UserError("model.registers: 0 is not right: Llip mixes the registers of the ViT; give 1 or more")
        if options.dimension % options.heads:
            raise UserError(f"options.dimension: {options.dimension} must be a multiple of options.heads")
        super().__init__(config, options, tokenizer)
        self.pool = TextMixture(  # in the place of CLIP's projection
            config.width, options.text_width, options.dimension, options.heads, options.temperature, options.root,
            options.mixing,
        )  # fmt: skip

    def images(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures, (B, 3, S, S) -> mixture tokens (B, K, W)."""
        return self.image(pixels).registers

    def texts(self, tokens: Tensor) -> Tensor:
        """Encode token numbers, (T, L) -> (T, W) of the text encoder: what asks, and what its target is made of."""
        return self.text.pooled(tokens)

    def targets(self, texts: Tensor) -> Tensor:
        """Return the unit vectors that mixed pictures are compared with: (..., W) -> (..., D), float32 or above."""
        return _unit(self.text.out(texts))

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a batch; what is watched of a picture is the mean of its mixture tokens."""
        output = super().forward(batch, moment)
        return {**output, "features": output["features"].mean(dim=1)}

    def compared(self, images: Tensor, texts: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of this process: its pictures, mixed for the texts of all; and the keys of all, (N,)."""
        (everyone, first), (known, _) = gathered(texts), gathered(keys)
        matches = Matches(known, first, len(keys))
        if self.options.duplicates == "negatives":
            matches = matches.distinct()
        queries, targets, memory = self.pool.queries(everyone), self.targets(everyone), self.pool.memory(images)

        def similarities(columns: Tensor) -> Tensor:
            return _cosines(self.pool.mixed(queries[:, :, columns], *memory), targets[columns])

        return pairwise_sigmoid_loss(matches, similarities, self.scale, self.bias, self.options.chunk), known

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Return the mixture tokens of normalised pictures, (B, K, W) float32."""
        return self.images(pixels).float()

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return the vectors of texts, (T, W) float32; their lengths say how sharply they choose."""
        return self.texts(tokens).float()

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines of pictures (N, K, W), mixed for every text (T, W), and texts: (N, T)."""
        return _cosines(self.pool(pictures, texts), self.targets(texts))

    def own_scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the cosines of pictures with texts of their own, (N, T, W): (N, T).

        One text of each picture after another, so that equal ones are computed alike and tie.
        """
        return torch.cat([_cosines(self.pool(pictures, one), self.targets(one)) for one in texts.split(1, dim=1)], 1)

    def ensemble(self, texts: Tensor) -> Tensor:
        """Return vectors of the mean direction and the mean length: (C, P, W) -> (C, W); of one sentence its own."""
        direction = F.normalize(F.normalize(texts, dim=2).mean(dim=1), dim=1)
        return direction * texts.norm(dim=2).mean(dim=1, keepdim=True)


def _cosines(mixed: Tensor, targets: Tensor) -> Tensor:
    """Return the cosines of mixed pictures (B, T, D) and unit targets (T, D) or (B, T, D): (B, T)."""
    return (_unit(mixed) * targets).sum(dim=2)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
