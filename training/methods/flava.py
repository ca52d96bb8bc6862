"""FLAVA: masked pictures, texts, and both together; pairs compared and matched (Singh et al. 2022, arXiv 2112.04482).

Losses on pictures with captions: patches are predicted from the picture alone and words from the text alone; both from
the two, where picture and text belong together; whether they do; and the contrastive loss, where nothing is masked.
The paper has the first two on pictures and texts without partners.

As in SigLIP a picture is pooled by attention and a text is read at its last place, where FLAVA has class tokens, and
the shared space has the width of the image encoder, where it has 512 dimensions; the visual words of patches are BEiT's
of here, centres of k-means, where it has those of a dVAE.
Shapes: B pairs, N patches, M masked ones, L tokens of a text, K visual words, V tokens of the vocabulary, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.data.loader import BatchPlan
from granary.training.losses.next_token import IGNORED, next_token_loss
from granary.training.losses.processes import gathered
from granary.training.losses.reconstruction import nearest_codes, patchify
from granary.training.masked_images import MASKS
from granary.training.masking.block_wise import draw_block_mask
from granary.training.masking.random_patches import masked_count
from granary.training.masking.words import mask_words
from granary.training.method import Moment
from granary.training.methods.beit import CODEBOOK, codebook_file, learn_codebook
from granary.training.methods.clip import CLIP, PairOptions
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.dual_encoder import Kind
from granary.training.models.fusion import Fusion, prediction_head
from granary.training.models.vit import gather_tokens
from granary.training.models.vit_config import ViTConfig

WORDS, PARTNERS, SHIFT = 2, 3, 4  # purposes of random draws


class FlavaOptions(PairOptions, frozen=True):
    """Options of FLAVA; defaults are the paper's where it gives them, but for the visual words."""

    loss: Literal["contrastive"] = Field("contrastive", description="what compares pictures and texts")
    vocabulary: int = Field(30_522, ge=512, description="tokens at most of a tokenizer that is trained")
    text_width: int = Field(768, ge=4, description="width of the text encoder")
    text_heads: int = Field(12, ge=1, description="heads of the text encoder")
    fusion_depth: int = Field(6, ge=1, description="blocks over picture and text together")
    fusion_heads: int = Field(12, ge=1, description="heads of these")
    codes: int = Field(8192, ge=2, description="K, visual words: centres of k-means on patches")
    codebook_pictures: int = Field(1024, ge=1, description="pictures whose patches k-means is run on")
    mask_ratio: float = Field(0.4, gt=0, lt=1, description="share of the patches that are masked")
    smallest_block: int = Field(16, ge=1, description="least patches of a block that is masked as one")
    word_ratio: float = Field(0.15, gt=0, lt=1, description="share of the words that are masked")
    contrastive_weight: float = Field(1.0, ge=0, description="weight of the contrastive loss")
    image_weight: float = Field(1.0, ge=0, description="weight of patches predicted from the picture alone")
    text_weight: float = Field(1.0, ge=0, description="weight of words predicted from the text alone")
    fused_weight: float = Field(1.0, ge=0, description="weight of patches and of words predicted from both")
    matching_weight: float = Field(1.0, ge=0, description="weight of telling whether picture and text belong together")


class Learnt(NamedTuple):
    """The JSON of the tokenizer, and the codebook (K, P) float32, None for one of zeros."""

    tokenizer: str
    codebook: NDArray[np.float32] | None


class Paired(NamedTuple):
    """Pictures with texts of their own or of others.

    Args:
        tokens: (B, L) of the text that each picture is shown with.
        labels: (B,) 1 where they belong together, 0 where not, `IGNORED` where there is no caption.
    """

    tokens: Tensor
    labels: Tensor


class Flava(CLIP):
    """The encoders of SigLIP, a transformer over both, and five heads.

    Args:
        config: of the image encoder.
        options: of the method.
        known: tokenizer and codebook, as `learn` returns them.

    Raises:
        UserError: sizes do not fit.
    """

    Options: ClassVar[type[OptionGroup]] = FlavaOptions
    MODEL = {"class_token": False, "layer_scale": 0.0, "mask_token": True}  # noqa: RUF012 read only
    KIND: ClassVar[Kind] = "siglip"
    options: FlavaOptions  # type: ignore[assignment]
    codebook: Tensor

    def __init__(self, config: ViTConfig, options: FlavaOptions, known: Learnt) -> None:
        if config.width % options.fusion_heads:
            raise UserError(f"options.fusion_heads: {options.fusion_heads} must divide model.width, {config.width}")
        if not config.mask_token or config.stem == "conv":
            raise UserError("model: masked patches need mask_token true and the stem of linear patches")
        super().__init__(config, options, known.tokenizer)  # type: ignore[arg-type]
        self.masked_patches = masked_count(config.grid**2, options.mask_ratio)
        nn.init.trunc_normal_(self.image.mask_token, std=0.02)
        width, words, text = config.width, self.text.config.vocabulary, options.text_width
        size = 3 * config.patch_size**2
        codebook = torch.zeros(options.codes, size) if known.codebook is None else torch.tensor(known.codebook)
        if codebook.shape[1] != size:
            raise UserError(f"out: its {CODEBOOK} is of patches of another size; give another out")
        self.register_buffer("codebook", codebook)
        self.fusion = Fusion(width, text, width, options.fusion_depth, options.fusion_heads, config.norm_eps)
        sizes = {"image": (width, len(codebook)), "text": (text, words), "matching": (width, 2)}
        sizes |= {"fused_image": (width, len(codebook)), "fused_text": (width, words)}
        self.heads = nn.ModuleDict({name: prediction_head(*size) for name, size in sizes.items()})

    @classmethod
    def learn(  # type: ignore[override]
        cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str
    ) -> Learnt:
        """Return tokenizer and codebook, those of the run that goes on in `out` or learnt now. Raises UserError."""
        assert isinstance(options, FlavaOptions)
        assert isinstance(config, ViTConfig)
        made = (options.codes, options.codebook_pictures, options.crop_scale)
        return Learnt(super().learn(config, options, plan, out), learn_codebook(config, *made, plan, out))

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> Learnt:  # type: ignore[override]
        """Return both: the codebook is among the weights."""
        return Learnt(super().recalled(remembered, weights), weights["codebook"].float().cpu().numpy())

    @classmethod
    def imagined(cls, options: OptionGroup) -> Learnt:  # type: ignore[override]
        """Return a tokenizer, and no codebook."""
        return Learnt(super().imagined(options), None)

    @property
    def files(self) -> dict[str, bytes]:
        """Files of the training directory, by name."""
        return {**super().files, CODEBOOK: codebook_file(self.codebook)}

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the weighted sum of the losses of a batch, and each of them; one caption drawn for each picture."""
        options = self.options
        pixels, tokens, keys = self.inputs(batch, moment)
        images = self.images(pixels)
        contrastive, everyone = self.compared(images, self.texts(tokens), keys)
        self.skipped += (everyone == 0).sum()
        pairs = self.paired(tokens, keys, batch["id"], moment)
        losses = self.predicted(pixels, pairs, batch["id"], moment)
        loss = options.contrastive_weight * contrastive + options.matching_weight * losses["matching"]
        loss = loss + options.image_weight * losses["image"] + options.text_weight * losses["text"]
        loss = loss + options.fused_weight * (losses["fused_image"] + losses["fused_text"])
        watched = {name: value.detach() for name, value in losses.items()}
        watched |= {"contrastive": contrastive.detach(), "skipped": self.skipped.float()}
        return {"loss": loss, "features": images.detach(), "scale": self.scale.detach().exp()[0], **watched}

    def paired(self, tokens: Tensor, keys: Tensor, ids: list[str], moment: Moment) -> Paired:
        """Give half of the pictures the caption of another one of the batch, as many steps on for all.

        A picture keeps its own where the other has none or the same.

        Args:
            tokens: (B, L).
            keys: (B,) `caption_keys`.
            ids: of the pictures.
            moment: of the run.
        """
        (texts, first), (known, _) = gathered(tokens), gathered(keys)
        shift = int(moment.generator(SHIFT, shared=True).integers(1, max(2, len(texts))))
        others = (torch.arange(len(tokens), device=tokens.device) + first + shift) % len(texts)
        wished = [moment.picture_generator(identity, PARTNERS).random() < 0.5 for identity in ids]
        apart = torch.tensor(wished, device=tokens.device) & (known[others] != 0) & (known[others] != keys)
        labels = (~apart).long().masked_fill(keys == 0, IGNORED)
        return Paired(torch.where((apart & (keys != 0))[:, None], texts[others], tokens), labels)

    def predicted(self, pixels: Tensor, pairs: Paired, ids: list[str], moment: Moment) -> dict[str, Tensor]:
        """Return the losses of what is masked, and of matching.

        Args:
            pixels: (B, 3, S, S), normalised.
            pairs: the texts they are shown with.
            ids: of the pictures.
            moment: of the run.
        """
        masked = self.masks(ids, moment).to(pixels.device)
        places = (~masked).byte().argsort(dim=1, stable=True)[:, : self.masked_patches]  # (B, M), in their order
        codes = nearest_codes(gather_tokens(patchify(pixels, self.config.patch_size), places), self.codebook)
        shown, words = (rows.to(pixels.device) for rows in self.masked_texts(pairs, ids, moment))
        patches, states = self.image(pixels, masked=masked).patches, self.text.norm(self.text.states(shown))
        pair, fused_patches, fused_words = self.fusion(patches, states)
        together = pairs.labels == 1
        return {
            "image": next_token_loss(self.heads["image"](gather_tokens(patches, places)), codes),
            "text": self._words("text", states, words),
            "fused_image": next_token_loss(
                self.heads["fused_image"](gather_tokens(fused_patches, places)),
                codes.masked_fill(~together[:, None], IGNORED),
            ),
            "fused_text": self._words("fused_text", fused_words, words.masked_fill(~together[:, None], IGNORED)),
            "matching": next_token_loss(self.heads["matching"](pair)[:, None], pairs.labels[:, None]),
        }

    def _words(self, head: str, states: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of masked words, whose states alone go through the head."""
        counted = targets != IGNORED
        return next_token_loss(self.heads[head](states[counted])[None], targets[counted][None])

    def masks(self, ids: list[str], moment: Moment) -> Tensor:
        """Return the masks of pictures, (B, N) bool, by id and step alone."""
        drawn = [
            draw_block_mask(
                self.config.grid,
                self.masked_patches,
                self.options.smallest_block,
                moment.picture_generator(identity, MASKS),
            )
            for identity in ids
        ]
        return torch.from_numpy(np.stack(drawn))

    def masked_texts(self, pairs: Paired, ids: list[str], moment: Moment) -> tuple[Tensor, Tensor]:
        """Return texts with masked words, and the words, (B, L) each, `IGNORED` where none is to be predicted.

        What begins a text elsewhere, a token that no text has here, stands for a masked word.
        """
        mask, vocabulary = self.tokenizer.start, self.text.config.vocabulary
        shown, targets = pairs.tokens.tolist(), [[IGNORED] * pairs.tokens.shape[1] for _ in ids]
        for n, (row, label) in enumerate(zip(shown, pairs.labels.tolist(), strict=True)):
            count = row.index(self.tokenizer.end) if label != IGNORED else 0
            generator = moment.picture_generator(ids[n], WORDS)
            own, chosen = mask_words(row[:count], self.options.word_ratio, mask, vocabulary, generator)
            targets[n][:count] = [word if there else IGNORED for word, there in zip(row, chosen, strict=False)]
            shown[n] = [*own, *row[count:]]
        return torch.tensor(shown), torch.tensor(targets)
