"""CoCa: a picture and its caption meet in one space, and the caption is said (Yu et al. 2022, arXiv 2205.01917).

The text decoder is cut in two. Its lower half does not see the picture, and gives the vector that is compared; its
upper half attends to the picture and says the caption, a token after another: one pass gives both losses. Two poolers
of learnt queries gather the patches, one query for the comparison and many for the words. A text is read at the token
that ends it, where the paper adds a class token at the end.
Shapes: B pictures, T texts of L tokens, P patches of width D, K gathered tokens of width W, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.losses.next_token import next_token_loss, targets_until
from granary.training.method import Moment
from granary.training.methods.clip import CLIP, CLIPOptions
from granary.training.models.caption_decoder import AttentionalPooler, CaptionDecoder
from granary.training.models.generative import Generative
from granary.training.models.vit_config import ViTConfig


class CoCaOptions(CLIPOptions, frozen=True):
    """Options of CoCa; defaults are those of CoCa-Base."""

    loss: Literal["contrastive"] = Field("contrastive", description="what compares pictures and texts")
    vocabulary: int = Field(64_000, ge=512, description="tokens at most of a tokenizer that is trained")
    text_width: int = Field(768, ge=4, description="width of both halves of the text decoder")
    text_depth: int = Field(12, ge=1, description="blocks of its lower half, which does not see the picture")
    text_heads: int = Field(12, ge=1, description="heads of the text decoder and of the poolers")
    decoder_depth: int = Field(12, ge=1, description="blocks of its upper half, which attends to the picture")
    queries: int = Field(256, ge=1, description="tokens of a picture that the words are said of")
    contrastive_weight: float = Field(1.0, ge=0, description="weight of the contrastive loss")
    caption_weight: float = Field(2.0, ge=0, description="weight of the loss of the caption")
    dimension: int = Field(768, ge=1, description="dimensions of the shared space")


class CoCa(CLIP, Generative):
    """CLIP's encoders without a class token, two poolers, and a decoder over the states of the text encoder.

    Args:
        config: of the image encoder.
        options: of the method.
        tokenizer: its JSON, as `learn` returns it.

    Raises:
        UserError: heads do not divide the dimensions.
    """

    Options: ClassVar[type[OptionGroup]] = CoCaOptions
    MODEL = {**CLIP.MODEL, "pre_norm": False, "patch_bias": True, "class_token": False}  # noqa: RUF012 read only
    options: CoCaOptions
    pool: AttentionalPooler

    def __init__(self, config: ViTConfig, options: CoCaOptions, tokenizer: str) -> None:
        if options.dimension % options.text_heads:
            raise UserError(f"options.dimension: {options.dimension} must be a multiple of options.text_heads")
        super().__init__(config, options, tokenizer)
        width, heads = options.text_width, options.text_heads
        self.pool = AttentionalPooler(config.width, 1, options.dimension, heads)  # in the place of CLIP's projection
        self.gather = AttentionalPooler(config.width, options.queries, width, heads)
        self.decoder = CaptionDecoder(width, options.decoder_depth, heads, config.norm_eps)

    def images(self, pixels: Tensor) -> Tensor:
        """Encode normalised pictures, (B, 3, S, S) -> (B, dimension), not of unit length."""
        return self.pool(self.image(pixels).patches)[:, 0]

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the weighted sum of both losses, and each of them, one caption drawn for each picture."""
        pixels, tokens, keys = self.inputs(batch, moment)
        patches, states = self.image(pixels).patches, self.text.states(tokens)
        images = self.pool(patches)[:, 0]
        compared, everyone = self.compared(images, self.text.out(self.text.read(states, tokens)), keys)
        logits = self.decoder(states[:, :-1], self.gather(patches), self.text.embed.weight)
        said = next_token_loss(logits, targets_until(tokens, self.end, keys != 0))
        self.skipped += (everyone == 0).sum()
        return {
            "loss": self.options.contrastive_weight * compared + self.options.caption_weight * said,
            "features": images.detach(),
            "skipped": self.skipped.float(),
            "scale": self.scale.detach().exp()[0],
            "contrastive": compared.detach(),
            "caption": said.detach(),
        }

    @property
    def seen(self) -> ViTConfig:
        """The architecture of the image encoder."""
        return self.config

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.text.config.vocabulary

    @property
    def longest(self) -> int:
        """Tokens of a text at most, beginning and end among them."""
        return self.text.config.context

    @property
    def end(self) -> int:
        """Number of the token that ends a text."""
        return self.tokenizer.end

    def memory(self, pixels: Tensor) -> Tensor:
        """Gather the tokens of normalised pictures: (B, 3, S, S) -> (B, K, W)."""
        return self.gather(self.image(pixels).patches)

    def next_logits(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each: (B, K, W), (B, L) -> (B, L, V)."""
        return self.decoder(self.text.states(tokens), memory, self.text.embed.weight)

    def prompt(self, question: str | None) -> list[int]:
        """Return what begins a text; a question is what a caption goes on from."""
        return [self.tokenizer.start, *([] if question is None else self.tokenizer.plain(question))]

    def words(self, text: str) -> list[int]:
        """Return the tokens of a text and its end."""
        return [*self.tokenizer.plain(text), self.end]

    def spoken(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.text(tokens)
