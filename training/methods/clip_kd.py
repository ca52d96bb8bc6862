"""Distillation of CLIP: a small one learns from a large one that stands still (CLIP-KD, Yang et al. 2023, 2307.12732).

Beside its own contrastive loss it follows the teacher's affinities, the softmaxes over the texts and the images of a
batch, and the teacher's vectors, which an adapter brings to its dimensions. The weights are ours.
Shapes: B pictures, L tokens of a text, D dimensions of the student's shared space, E of the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.collate import Part
from granary.training.data.loader import BatchPlan
from granary.training.losses.affinity import affinity_loss
from granary.training.losses.contrastive import contrastive_loss, gathered_pairs
from granary.training.method import Moment
from granary.training.methods.clip import CLIP, CLIPOptions, draw_captions
from granary.training.methods.llip import Llip
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.clip_weights import dual_encoder
from granary.training.models.teacher import TaughtOptions, Teacher, TeacherFacts
from granary.training.models.vit_config import ViTConfig


class ClipKDOptions(CLIPOptions, TaughtOptions, frozen=True):
    """Options of the distillation; the teacher is a training of clip."""

    loss: Literal["contrastive"] = Field("contrastive", description="the student's own loss")
    contrastive_weight: float = Field(1.0, ge=0, description="weight of the student's own loss")
    affinity_weight: float = Field(1.0, ge=0, description="weight of the teacher's softmaxes over the batch")
    feature_weight: float = Field(1.0, ge=0, description="weight of the squared distance to the teacher's vectors")


class Known(NamedTuple):
    """The JSON of the student's tokenizer, and the facts of a teacher; None where the options name it."""

    tokenizer: str
    teacher: TeacherFacts | None = None


class ClipKD(CLIP):
    """A CLIP that learns, and one that does not.

    Args:
        config: of the student's image encoder.
        options: of the method.
        known: tokenizer and teacher, see `Known`.

    Raises:
        UserError: the teacher is no training of an image-text model.
    """

    Options: ClassVar[type[OptionGroup]] = ClipKDOptions
    options: ClipKDOptions

    def __init__(self, config: ViTConfig, options: ClipKDOptions, known: Known) -> None:
        super().__init__(config, options, known.tokenizer)
        self.teacher = Teacher.of(options, known.teacher)
        theirs = dual_encoder(self.teacher.method, options.teacher)
        if isinstance(theirs, Llip):
            raise UserError(f"options.teacher: {options.teacher} is a llip, which has no vector of a picture")
        self.adapters = nn.ModuleList(nn.Linear(options.dimension, theirs.text.config.dimension) for _ in range(2))

    @classmethod
    def learn(  # type: ignore[override]
        cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str
    ) -> Known:
        """Return the tokenizer, as for CLIP."""
        return Known(super().learn(config, options, plan, out))

    @property
    def remembered(self) -> dict[str, object]:  # type: ignore[override]
        """Tokenizer and facts of the teacher."""
        return {"tokenizer": self.tokenizer.json, "teacher": self.teacher.facts._asdict()}

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> Known:  # type: ignore[override]
        """Return what was remembered: the teacher's weights are among those of the training."""
        facts: Any = remembered
        return Known(facts["tokenizer"], TeacherFacts(**facts["teacher"]))

    @classmethod
    def imagined(cls, options: OptionGroup) -> Known:  # type: ignore[override]
        """Return a tokenizer."""
        return Known(super().imagined(options))

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the weighted sum of three losses, and each of them; one caption drawn for each picture."""
        options = self.options
        pixels, tokens, keys = self.inputs(batch, moment)
        images, texts = self.images(pixels), self.texts(tokens)
        student = gathered_pairs(images, texts, keys)
        teacher = gathered_pairs(*self.taught(pixels, batch, moment), keys)
        self.skipped += (student.keys == 0).sum()
        if options.duplicates == "negatives":
            student, teacher = student.distinct(), teacher.distinct()
        contrastive = contrastive_loss(student, self.scale)
        theirs: Any = self.teacher.method
        affinity = affinity_loss(student, teacher, self.scale, theirs.scale)
        local = student.matches.local
        apart = [
            (F.normalize(_wide(adapter(ours)), dim=1) - wanted[local]).square().sum(dim=1)
            for adapter, ours, wanted in zip(
                self.adapters, (images, texts), (teacher.images, teacher.texts), strict=True
            )
        ]
        feature = student.matches.mean(apart[0] + apart[1]) / 2
        loss = options.contrastive_weight * contrastive + options.affinity_weight * affinity
        losses = {"contrastive": contrastive.detach(), "affinity": affinity.detach(), "feature": feature.detach()}
        watched = {"skipped": self.skipped.float(), "scale": self.scale.detach().exp()[0]}
        return {"loss": loss + options.feature_weight * feature, "features": images.detach(), **losses, **watched}

    @torch.no_grad()
    def taught(self, pixels: Tensor, batch: Part, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the teacher's vectors of pictures and of the same captions, (B, E) each.

        Args:
            pixels: (B, 3, S, S), normalised for the student.
            batch: with the captions.
            moment: of the run.
        """
        theirs: Any = self.teacher.method
        captions = draw_captions(batch["captions"], batch["id"], moment)
        numbers = theirs.tokenizer.numbers([caption or "" for caption in captions]).to(pixels.device)
        return theirs.images(self.teacher.shown(pixels, self.config)), theirs.texts(numbers)

    def encoders(self) -> list[Backbone]:
        """The student's image encoder, without the teacher's, whose weights are given."""
        return [self.image]


def _wide(rows: Tensor) -> Tensor:
    """Return rows in float32 or above."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
